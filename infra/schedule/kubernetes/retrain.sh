#!/bin/sh
# darkroom retrain in a project on the volume, $DARKROOM_SHARED/projects/retrain, created once from the image's commit.
set -eu
image=$(cd "$(dirname "$0")/../../.." && pwd)
project=${DARKROOM_SHARED:?the volume}/projects/retrain

if [ ! -d "$project" ]; then
    mkdir -p "${project%/*}"
    temporary=$(mktemp -d "$DARKROOM_SHARED/.project-XXXXXX")
    cp -R "$image/." "$temporary"
    chmod 755 "$temporary"
    mv -T "$temporary" "$project" # atomically
fi
cd "$project"
commit=$(git -C "$image" rev-parse HEAD)
if ! git merge-base --is-ancestor "$commit" HEAD 2>/dev/null; then # the stages and the command would have different versions
    echo "error: $project: does not contain the image's commit $commit" >&2
    echo "  -> merge that commit into its branch (git fetch, git merge) or use the image of its own commit" >&2
    exit 2
fi
dvc config --local cache.dir "$DARKROOM_SHARED/cache" # shared with the jobs of infra/kubernetes
if [ -n "${DARKROOM_DVC_REMOTE:-}" ]; then
    dvc remote add --local --force --quiet --default team "$DARKROOM_DVC_REMOTE"
fi
exec darkroom retrain
