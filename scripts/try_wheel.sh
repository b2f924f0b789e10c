#!/usr/bin/env bash
# What somebody without a clone does: the wheel in an empty environment, every command in an empty folder, an empty home.
# Takes some minutes. Real photographs and a checkpoint are used if IMGSIM_REAL_DATA names their folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
demo=
trap '[ -z "$demo" ] || kill "$demo"; rm -rf "$work"' EXIT
mkdir "$work/source" "$work/home" "$work/folder" "$work/tmp"
cp -r "$root"/{imgsim,notebooks,pyproject.toml,README.md,LICENSE} "$work/source"

echo "== install"
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/pip" --disable-pip-version-check "$@"; }
pip wheel -q --no-deps -w "$work" "$work/source"
pip install -q "$(grep '^torch==' "$root/requirements.txt")"
pip install -q -c "$root/requirements.txt" -c "$root/requirements-test.txt" \
    "imgsim-lsh[notebooks,demo,duplicates] @ file://$(echo "$work"/imgsim_lsh-*.whl)"
pip check
# Compiled code goes to __pycache__, and Gradio keeps a random number beside its own modules.
installed() { find "$work/venv" -type f -not -path "*/__pycache__/*" -not -path "*/gradio/hash_seed.txt" | sort; }
installed > "$work/before"

# Nothing of the caller's environment gets in: no PYTHONPATH, no settings, another home.
imgsim=(env -i HOME="$work/home" TMPDIR="$work/tmp" PATH="$work/venv/bin:/usr/bin:/bin" LANG=C.UTF-8 "$work/venv/bin/imgsim")
cd "$work/folder"
echo "== imgsim --version"
"${imgsim[@]}" --version
echo "== imgsim run"
"${imgsim[@]}" run
photo=$(find "$work/home/.cache/imgsim" -path "*/test/*.jpg" | sort | head -1)
cp "$photo" photo.jpg
run=outputs/builtin-builtin-k8-L10-p8-seed0
echo "== imgsim query"
"${imgsim[@]}" query $run photo.jpg
echo "== imgsim repeat"
"${imgsim[@]}" repeat $run
echo "== imgsim sweep"
printf 'hash_size: [6, 8]\n' > two.yaml
"${imgsim[@]}" sweep two.yaml
echo "== imgsim duplicates"
if [ -n "${IMGSIM_REAL_DATA:-}" ]; then
    "${imgsim[@]}" duplicates "$IMGSIM_REAL_DATA/beans/test" --checkpoint "$IMGSIM_REAL_DATA/mobilenet-v1-025"
else
    "${imgsim[@]}" duplicates "$(dirname "$(dirname "$photo")")" --threshold 0.999
fi
echo "== imgsim demo"
"${imgsim[@]}" demo $run --port 7871 &
demo=$!
"$work/venv/bin/python" - <<'PYTHON'
import time, urllib.request

for _ in range(300):
    try:
        print("the page answers:", urllib.request.urlopen("http://127.0.0.1:7871").status)
        break
    except OSError:
        time.sleep(1)
else:
    raise SystemExit("the page does not answer")
PYTHON
kill "$demo"
wait "$demo" || true
demo=

echo "== what was written"
installed | diff "$work/before" - || { echo "something was written into the environment" >&2; exit 1; }
[ "$(ls | sort | tr '\n' ' ')" = "outputs photo.jpg two.yaml " ] || { ls -la >&2; exit 1; }
ls outputs outputs/*
echo "In the home:"
(cd "$work/home" && du -d 2 .)
echo "Left in the folder for temporary files:"
(cd "$work/tmp" && du -d 1 .)
echo "Compiled searches (numba) in the environment:"
find "$work/venv" -name "*.nb[ci]" | wc -l
