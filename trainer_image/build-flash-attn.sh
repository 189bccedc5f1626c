#!/usr/bin/env bash
# Builds flash-attn from source into the folder $1, without a GPU: nvcc from PyPI, a C++ compiler from Debian.
# Needs constraints.txt and requirements.txt beside it, and UV_VERSION, FLASH_ATTN_CUDA_ARCHS and MAX_JOBS.
set -euo pipefail
target=$1
here=$(cd "$(dirname "$0")" && pwd)

# flash-attn passes over an architecture that it does not know without a word, and builds a library that runs nowhere;
# so it does when it is given none.
IFS=';' read -ra architectures <<<"${FLASH_ATTN_CUDA_ARCHS}"
for architecture in "${architectures[@]:-}"; do
    case ${architecture} in
        80 | 90 | 100 | 120) ;;
        *)
            echo "FLASH_ATTN_ARCHS has '${architecture}'; flash-attn knows 80 (serves 86 and 89, too), 90, 100, 120" >&2
            exit 1
            ;;
    esac
done

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

export PATH="/build/bin:${CUDA_HOME}/bin:${PATH}"
# Without this it would look for a ready wheel elsewhere, and fall back to building when there is none.
export FLASH_ATTENTION_FORCE_BUILD=TRUE
# The source as locked, with its digest.
awk '/^flash-attn==/ { found = 1 } found { print } found && !/\\$/ { exit }' "${here}/constraints.txt" >/build/pin.txt
pip download --no-cache-dir --no-deps --no-build-isolation --no-binary flash-attn --require-hashes \
    --dest /build/download --requirement /build/pin.txt
mkdir /build/source
tar --extract --file /build/download/flash_attn-*.tar.gz --directory /build/source --strip-components 1
# torch 2.15's headers need C++20; this flash-attn asks for C++17.
sed -i 's/-std=c++17/-std=c++20/g' /build/source/setup.py
# pip instead of uv: it shows what is being compiled, which goes on for hours.
pip install --verbose --no-cache-dir --no-deps --no-build-isolation --target "${target}" /build/source
