"""The data set ``clips``: short videos, composed of the data's pictures or read from a user's folder."""
