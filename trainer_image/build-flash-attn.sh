#!/usr/bin/env bash
# Builds flash-attn from source into the folder $1, without a GPU: nvcc from PyPI, a C++ compiler from Debian.
# Needs constraints.txt and requirements.txt beside it, and UV_VERSION, FLASH_ATTN_CUDA_ARCHS and MAX_JOBS.
set -euo pipefail
target=$1
here=$(cd "$(dirname "$0")" && pwd)

apt-get update
apt-get install --yes --no-install-recommends g++ python3-dev

python3 -m venv /build
/build/bin/pip install --no-cache-dir "uv==${UV_VERSION}"
install() { /build/bin/uv pip install --python /build/bin/python --no-cache "$@"; }
install --require-hashes --requirement "${here}/requirements.txt"
# The compiler of the very release whose libraries torch brings along.
cuda=$(sed -nE 's/^cuda-toolkit(\[[^]]*\])?==([^ ;]+).*/\2/p' "${here}/constraints.txt")
install "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl,cublas,cusolver,cusparse,curand]==${cuda}" setuptools wheel ninja

CUDA_HOME=$(/build/bin/python -c 'import pathlib, nvidia; print(next(pathlib.Path(nvidia.__path__[0]).glob("cu1*")))')
export CUDA_HOME
# Wheels carry libraries under their versioned names only, and in lib instead of lib64.
ln -sfn lib "${CUDA_HOME}/lib64"
for library in "${CUDA_HOME}"/lib/lib*.so.*; do
    ln -sfn "$(basename "${library}")" "${library%%.so.*}.so"
done

sed -nE 's/^((flash-attn|einops)==[^ ]+).*/\1/p' "${here}/constraints.txt" >/build/pins.txt
# Without this it would look for a ready wheel elsewhere, and fall back to building when there is none.
FLASH_ATTENTION_FORCE_BUILD=TRUE PATH="/build/bin:${CUDA_HOME}/bin:${PATH}" \
    /build/bin/uv pip install --python /build/bin/python --no-cache \
    --no-build-isolation --no-deps --target "${target}" --requirement /build/pins.txt
