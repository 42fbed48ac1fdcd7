#!/bin/sh
# Run by cron: retrain.sh <project> <folder of the program darkroom>. It prints only failures, which cron mails.
# If .darkroom/schedule.env sets DARKROOM_ALERT, this shell command gets the failure on its standard input instead.
alert() {
    {
        echo "darkroom retrain in $project on $(uname -n) ended with exit code $1"
        tail -n 30 $log 2>/dev/null
    } | sh -c "${DARKROOM_ALERT:-cat}"
    exit "$1"
}
project=$1 log=.darkroom/retrain.log
export PATH="$2:$PATH"
cd "$project" && mkdir -p .darkroom || alert 1
if [ -f .darkroom/schedule.env ]; then
    set -a
    . ./.darkroom/schedule.env
    set +a
fi
if [ -f $log ] && [ "$(wc -c <$log)" -gt 10000000 ]; then
    mv $log $log.1
fi
nice -n 10 timeout -k 600 82800 darkroom retrain >>$log 2>&1 # retrain.deadline_hours ends it before these 23 hours
code=$?
case $code in
    0 | 75) exit $code ;; # 75: another retraining runs, which reports its own result
    *) alert $code ;;
esac
