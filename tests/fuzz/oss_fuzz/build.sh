#!/bin/bash -eu
# Builds every target with its seeds and its dictionary; OSS-Fuzz calls it with CC, CFLAGS, OUT and SRC set.

TARGETS=(decode messages regions memory rings fuse inflight)

cd "$SRC/vhostuser"
pip3 install --no-build-isolation .
export PYTHONPATH=$PWD

for target in "${TARGETS[@]}"; do
  sed "s/TARGET/$target/" tests/fuzz/oss_fuzz/entry.py > "fuzz_$target.py"
  compile_python_fuzzer "fuzz_$target.py" --collect-submodules vhostuser --collect-submodules tests.fuzz

  seeds=$(mktemp -d)
  python3 -m tests.fuzz.corpus unpack "$target" "$seeds"
  (cd "$seeds" && zip -q -r "$OUT/fuzz_${target}_seed_corpus.zip" .)
  rm -r "$seeds"
  cp "tests/fuzz/oss_fuzz/$target.dict" "$OUT/fuzz_$target.dict"
  printf '[libfuzzer]\nmax_len = 2048\n' > "$OUT/fuzz_$target.options"
done
