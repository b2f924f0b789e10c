#!/usr/bin/env bash
# What somebody in Colab does: each notebook alone in an empty folder, on Colab's packages, "Run all" from top to bottom.
# Notebooks to try may be named; the others take minutes each. The pip line is executed as it stands, on this checkout.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# = 0 ]; then
    set -- "$root"/notebooks/*.ipynb
fi

# Colab's packages at the end of 2025, as far as these notebooks meet them; pip must leave what it has imported alone.
IMPORTED=(numpy==2.0.2 pillow==11.3.0 matplotlib==3.10.0 pandas==2.2.2 ipython==7.34.0 ipykernel==6.17.1)
python3 -m venv "$work/colab"
"$work/colab/bin/pip" install -q --disable-pip-version-check "${IMPORTED[@]}" "$(grep '^torch==' "$root/requirements.txt")" \
    datasets==4.0.0 huggingface-hub==0.36.0 ipywidgets==7.7.1 lazy_loader==0.4 numba==0.60.0 pyarrow==18.1.0 \
    pyyaml==6.0.3 safetensors==0.7.0 tqdm==4.67.1 transformers==4.57.3 \
    filelock==3.20.0 fsspec==2025.3.0 scipy==1.16.3 requests==2.32.4
site=$("$work/colab/bin/python" -c "import site; print(site.getsitepackages()[0])")
mkdir -p "$site/google/colab" "$work/jupyter/kernels/colab"
touch "$site/google/colab/__init__.py"
cat > "$work/jupyter/kernels/colab/kernel.json" <<JSON
{"argv": ["$work/now/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}",
  "--IPKernelApp.exec_lines=import google.colab, numpy, PIL.Image, matplotlib.pyplot, pandas"],
 "display_name": "Colab", "language": "python"}
JSON

# The tag that the pip line names is this commit, wherever it is asked for.
git clone -q --bare "$root" "$work/imgsim.git"
git -C "$work/imgsim.git" tag -f "v$(sed -n 's/^version = "\(.*\)".*/\1/p' "$root/pyproject.toml")" > "$work/tagged"
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="url.file://$work/imgsim.git.insteadOf"
export GIT_CONFIG_VALUE_0=https://github.com/imgsim/imgsim JUPYTER_PATH="$work/jupyter" IMGSIM_CACHE="$work/cache"

for notebook; do
    name=$(basename "$notebook")
    rm -rf "$work/now" "$work/empty"
    cp -al "$work/colab" "$work/now"
    mkdir "$work/empty"
    cp "$notebook" "$work/empty"
    echo "== $name"
    run=("$root/.venv/bin/papermill" --no-progress-bar -k colab "$name" out.ipynb)
    if [[ $name == 09* ]]; then  # its first cell says that the session may have to be restarted
        (cd "$work/empty" && "${run[@]}" > "$work/log" 2>&1) || echo "restarted"
    fi
    (cd "$work/empty" && time "${run[@]}" > "$work/log" 2>&1) || { tail -30 "$work/log" >&2; exit 1; }
    "$work/now/bin/python" -m pip freeze > "$work/after"
    for package in "${IMPORTED[@]}"; do
        if ! grep -qx "$package" "$work/after" && [[ $name$package != 09*pandas* ]]; then
            echo "pip replaced $package: Colab would ask for a restart." >&2
            exit 1
        fi
    done
done
