#!/usr/bin/env bash
# Builds llama.cpp (llama-bench, llama-quantize, llama-completion) from the source that llama-cpp-python's sdist carries.
#
#   setup_llama_cpp.sh native DIR    for this CPU, with everything it has (AMX too, where the compiler knows it)
#   setup_llama_cpp.sh noamx DIR     AVX-512 with VBMI, VNNI and BF16, but no AMX
#
# The programs lie in DIR/bin, what was built is told in DIR/build-info.txt. Needs python3 with pip, cmake, ninja and a
# C++ compiler on the PATH. VERSION chooses another release of the package, JOBS the number of compilers at a time, and
# SDIST an archive that is already here. With pip's own settings (PIP_INDEX_URL and the like) any index will do.
set -euo pipefail

VERSION=${VERSION:-0.3.36}
JOBS=${JOBS:-2}

variant=${1:-} directory=${2:-}
case $variant in
    native) flags=(-DGGML_NATIVE=ON) ;;
    noamx) flags=(-DGGML_NATIVE=OFF)
        for feature in SSE42 AVX AVX2 BMI2 FMA F16C AVX_VNNI AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16; do
            flags+=("-DGGML_$feature=ON")
        done
        for feature in AMX_TILE AMX_INT8 AMX_BF16; do
            flags+=("-DGGML_$feature=OFF")
        done ;;
    *) echo "usage: $0 native|noamx DIR" >&2; exit 2 ;;
esac
[ -n "$directory" ] || { echo "usage: $0 native|noamx DIR" >&2; exit 2; }
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

sdist=${SDIST:-$directory/llama_cpp_python-$VERSION.tar.gz}
if [ ! -f "$sdist" ]; then
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$directory" "llama-cpp-python==$VERSION"
fi
tar -xzf "$sdist" -C "$directory"
package=$directory/$(basename "$sdist" .tar.gz)
source=$package/vendor/llama.cpp
# The vendored tree has no history; the package's change log names the commit, newest first.
commit=$(grep -o -m1 'llama\.cpp@[0-9a-f]*' "$package/CHANGELOG.md" | cut -d@ -f2)

# GCC 12.2's _tile_loadconfig tells the optimizer of the first 8 of 64 bytes only; the stores to the others are dropped,
# and the AMX code dies of a general protection fault at once (llama.cpp's issue 20824). A barrier keeps them.
amx=$source/ggml/src/ggml-cpu/amx/mmq.cpp
if ! grep -q '"" ::: "memory"' "$amx"; then
    sed -i 's|^ *_tile_loadconfig(&tc);|    __asm__ volatile("" ::: "memory");\n&|' "$amx"
    grep -q '"" ::: "memory"' "$amx" || echo "no call of _tile_loadconfig found in $amx: check that AMX works" >&2
fi

# The server is left out, since its build would download a web page; so are the downloads of models.
cmake -S "$source" -B "$directory" -G Ninja -DCMAKE_BUILD_TYPE=Release "${flags[@]}" \
    -DLLAMA_BUILD_COMMIT="$commit" -DLLAMA_BUILD_NUMBER=0 \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF > "$directory/cmake.log"
cmake --build "$directory" -j "$JOBS" --target llama-bench llama-quantize llama-completion

{
    echo "llama-cpp-python ${package##*-}, llama.cpp $commit, $variant: ${flags[*]}"
    "${CXX:-c++}" --version | head -n 1
    grep -E 'OpenMP|ggml version|GGML_SYSTEM_ARCH|CPU backend' "$directory/cmake.log" || true
} | tee "$directory/build-info.txt"
