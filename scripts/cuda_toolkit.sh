#!/usr/bin/env bash
# Lays out a CUDA toolkit from pip packages, for compiling the CUDA build on a machine that has none:
#   scripts/cuda_toolkit.sh DIR && source DIR/env
# The packages are pinned to 13.0, which the CUDA bindings know. A stand-in libcuda.so.1 is made for linking only; a
# program linked against it starts on a machine with a driver, where the driver's own library is found first.
set -euo pipefail
dir=${1:?usage: cuda_toolkit.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
home=$dir/home
if [ ! -x "$home/bin/nvcc" ]; then
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install -q 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-cublas==13.0.*' \
    'nvidia-curand==10.4.0.*' 'nvidia-nccl-cu13==2.28.*'
  site=$(echo "$dir"/venv/lib/python3*/site-packages/nvidia)
  mkdir -p "$home"
  cp -r "$site"/cu13/. "$home/"
  cp -r "$site"/nccl/include/. "$home/include/"
  mkdir -p "$home/lib"
  cp "$site"/nccl/lib/* "$home/lib/"
  ln -sfn lib "$home/lib64"
  for library in "$home"/lib/*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
  done
fi
# Every driver entry that the bindings name, as a function that answers "no device" (34).
if [ ! -f "$home/lib/libcuda.so.1" ]; then
  cargo fetch --quiet
  bindings=$(find "${CARGO_HOME:-$HOME/.cargo}"/registry/src -path '*/cudarc-*/src/driver/sys/mod.rs' | sort | tail -1)
  grep -ohE 'fn (cu[A-Z][A-Za-z0-9_]*)' "$bindings" | sort -u | sed -E 's/fn (.*)/int \1(void) { return 34; }/' >"$dir/stub.c"
  cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/lib/libcuda.so.1" "$dir/stub.c"
  ln -sf libcuda.so.1 "$home/lib/libcuda.so"
fi
cat >"$dir/env" <<ENV
export CUDA_HOME=$home CUDA_PATH=$home CUDA_ROOT=$home CUDA_TOOLKIT_ROOT_DIR=$home
export PATH=$home/bin:\$PATH
export LIBRARY_PATH=$home/lib:\${LIBRARY_PATH:-}
# For running: a driver's own libcuda, where there is one, before the stand-in.
driver=\$(ldconfig -p 2>/dev/null | awk '/libcuda\.so\.1 /{print \$NF; exit}' || true)
export LD_LIBRARY_PATH=\${driver:+\$(dirname "\$driver"):}$home/lib:\${LD_LIBRARY_PATH:-}
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}
ENV
echo "toolkit in $home; source $dir/env"
