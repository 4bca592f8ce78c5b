#!/bin/sh
# Stands in for `python3 -m pip download … -d DIR NAME==VERSION`: copies the wheel
# of that name from the folder that this was called in, and notes the call.
here=$(dirname "$0")
while [ $# -gt 1 ]; do
    if [ "$1" = -d ]; then dir=$2; fi
    shift
done
echo "$1" >>"$here/calls"
package=${1%%==*}
if [ ! -f "$here/$package.whl" ]; then
    echo "ERROR: Could not find a version that satisfies the requirement $1" >&2
    echo "ERROR: No matching distribution found for $1" >&2
    exit 1
fi
cp "$here/$package.whl" "$dir/$package-${1##*==}-py3-none-any.whl"
