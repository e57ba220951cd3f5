#!/bin/sh
# Compiles the programs whose stacks are known, in the ways that compilers and packagers have: build.sh FOLDER
set -eu
from=$(dirname "$0")
to=$1
mkdir -p "$to"
# No frame pointers; a call stays a call.
flags="-O2 -fomit-frame-pointer -fno-optimize-sibling-calls -Wall"

cc $flags -o "$to/chain" "$from/chain.c"
cc $flags -g -o "$to/chain-debug" "$from/chain.c"
cc $flags -fno-asynchronous-unwind-tables -fno-unwind-tables -g -o "$to/chain-debug-frame" "$from/chain.c"
cc $flags -O0 -o "$to/chain-unoptimized" "$from/chain.c"
cc $flags -DSTATIC -static -o "$to/chain-static" "$from/chain.c"
cc $flags -DSTATIC -static-pie -o "$to/chain-static-pie" "$from/chain.c"
cc $flags -no-pie -o "$to/chain-no-pie" "$from/chain.c"
cc $flags -fno-omit-frame-pointer -o "$to/chain-frame-pointers" "$from/chain.c"
c++ $flags -x c++ -o "$to/chain-cxx" "$from/chain.c"
# No call frame information: musl's own library has none, either.
if command -v musl-gcc >/dev/null; then
    musl-gcc $flags -fno-asynchronous-unwind-tables -fno-unwind-tables -DSTATIC -static -o "$to/chain-musl" "$from/chain.c"
fi
strip -o "$to/chain-stripped" "$to/chain"
cc $flags -shared -fPIC -o "$to/libthrough.so" "$from/through.c"
# As prelink(8) leaves libraries: linked for an address that is not zero, at which the loader does not have to put them.
cc $flags -shared -fPIC -Wl,-Ttext-segment=0x3a00000000 -o "$to/libprelinked.so" "$from/through.c"
cc $flags -DROOM=900 -shared -fPIC -o "$to/libother.so" "$from/through.c"
# Without names of its own: these are in a debug file beside it.
cc $flags -g -DLINKED -o "$to/chain-whole" "$from/chain.c"
objcopy --only-keep-debug "$to/chain-whole" "$to/chain-linked.debug"
strip -o "$to/chain-linked" "$to/chain-whole"
objcopy "--add-gnu-debuglink=$to/chain-linked.debug" "$to/chain-linked"
rm "$to/chain-whole"
# The same program again, but another one to whoever goes by build ids.
number=0
for name in deleted overlay copied-up namespace exec; do
    number=$((number + 1))
    cc $flags -Wl,--build-id=0x7469656261636b0$number -o "$to/chain-$name" "$from/chain.c"
done
rustc --edition 2024 -O -C debuginfo=0 -o "$to/chain-rust" "$from/chain.rs"
rustc --edition 2024 -O -C panic=abort -C force-frame-pointers=no -o "$to/chain-rust-abort" "$from/chain.rs"
cc $flags -g -o "$to/leak" "$from/leak.c"
cc $flags -o "$to/early" "$from/early.c"
cc $flags -o "$to/grow" "$from/grow.c"
if command -v go >/dev/null; then
    GOCACHE=${GOCACHE:-$to/.go} GO111MODULE=off GOFLAGS= go build -o "$to/chain-go" "$from/chain.go"
    GOCACHE=${GOCACHE:-$to/.go} GO111MODULE=off GOFLAGS= go build "-ldflags=-s -w" -o "$to/chain-go-stripped" "$from/chain.go"
    GOCACHE=${GOCACHE:-$to/.go} GO111MODULE=off GOFLAGS= CGO_ENABLED=0 go build -o "$to/alloc-go" "$from/alloc.go"
    GOCACHE=${GOCACHE:-$to/.go} GO111MODULE=off GOFLAGS= CGO_ENABLED=1 go build -o "$to/alloc-cgo" "$from/alloc-cgo.go"
fi

# Allocations by several allocators.
cc $flags -g -o "$to/alloc" "$from/alloc.c" -lpthread
cc $flags -g -static -o "$to/alloc-static" "$from/alloc.c" -lpthread
c++ $flags -g -x c++ -o "$to/alloc-cxx" "$from/alloc.c" -lpthread
if command -v musl-gcc >/dev/null; then
    musl-gcc $flags -g -static -o "$to/alloc-musl" "$from/alloc.c" -lpthread
fi
c++ $flags -g -o "$to/shop" "$from/shop.cc"
cc $flags -g -o "$to/turns" "$from/turns.c" -lpthread -ldl
for library in jemalloc:2 tcmalloc_minimal:4 mimalloc:2; do
    for path in /usr/lib/*/lib${library%:*}.so.${library#*:}*; do
        if [ -f "$path" ]; then
            c++ $flags -g -x c++ -o "$to/alloc-${library%:*}" "$from/alloc.c" -x none "$path" -lpthread
            break
        fi
    done
done
