#!/bin/sh
# darkroom retrain in one project that stays on the volume, $DARKROOM_SHARED/projects/retrain: made from the image's commit at first.
set -eu
image=$(cd "$(dirname "$0")/../../.." && pwd)
project=${DARKROOM_SHARED:?the volume}/projects/retrain

if [ ! -d "$project" ]; then
    mkdir -p "${project%/*}"
    beside=$(mktemp -d "$DARKROOM_SHARED/.project-XXXXXX")
    cp -R "$image/." "$beside"
    chmod 755 "$beside"
    mv -T "$beside" "$project" # whole or not there
fi
cd "$project"
commit=$(git -C "$image" rev-parse HEAD)
if ! git merge-base --is-ancestor "$commit" HEAD 2>/dev/null; then # stages of one version under a command of another
    echo "error: $project: is not of the image's commit $commit" >&2
    echo "  -> bring its branch to that commit (git fetch, git merge) or use the image that it is of" >&2
    exit 2
fi
dvc config --local cache.dir "$DARKROOM_SHARED/cache" # shared with the jobs of infra/kubernetes
if [ -n "${DARKROOM_DVC_REMOTE:-}" ]; then
    dvc remote add --local --force --quiet --default team "$DARKROOM_DVC_REMOTE"
fi
exec darkroom retrain
