"""Everything that calls MLflow. It is imported inside functions, because most stages should start fast.

runs, run_description, rerun, lineage, system
                one training = one run, and what is recorded of it
delivery_queue, delivery, restored, connection, moved, run_notes
                how it reaches MLflow, also later or after the project was moved
registry, model_card, pyfunc_model, promotion, run_comparison
                registered models: versions, serving, champions, comparisons
trace, trace_tree, dvc_lock, mlflow_index, reproduce
                what was made from what, verified by hash; training a model again
"""
