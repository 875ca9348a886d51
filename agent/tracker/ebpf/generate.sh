#!/bin/sh
# Compiles the programs in bpf/ into the object that is committed, and its Go side. Takes
# clang, llvm and libbpf-dev of Debian 12; another compiler gives other objects, and an
# agent with another object keeps nothing of what one with the old object has pinned.
set -eu
cd "$(dirname "$0")"
out="${1:-.}"
go run github.com/cilium/ebpf/cmd/bpf2go -go-package ebpf -output-dir "$out" -target bpfel -tags linux -no-global-types \
	-cflags '-O2 -g -mcpu=v3 -Wall -Werror' track bpf/track.c -- -I/usr/include/"$(uname -m)"-linux-gnu
(cd bpf && sha256sum -- *.c *.h) > "$out"/track.sha256
