#!/bin/sh
# dvc repro of the image's commit, in a folder of its own on the shared volume: darkroom-repro [arguments of dvc repro]
# DARKROOM_SHARED: the volume, at the same path for every worker. DARKROOM_DVC_REMOTE: where to push the results, such as s3://bucket/dvc.
set -eu
image=/opt/darkroom
commit=$(git -C "$image" rev-parse HEAD)
project=${DARKROOM_SHARED:?a folder that every worker sees}/projects/$commit

if [ ! -d "$project" ]; then
    temporary=$(mktemp -d "$DARKROOM_SHARED/.project-XXXXXX")
    cp -R "$image/." "$temporary"
    chmod 755 "$temporary"
    mkdir -p "${project%/*}"
    mv -T "$temporary" "$project" # whole or not there
fi
cd "$project"
dvc config --local cache.dir "$DARKROOM_SHARED/cache" # commits share what they have in common
dvc repro "$@"
if [ -n "${DARKROOM_DVC_REMOTE:-}" ]; then
    dvc remote add --local --force --default team "$DARKROOM_DVC_REMOTE"
    dvc push
fi
