# shellcheck shell=bash
# The emulated machine. Sourced after common.sh; template and run must start the very same machine.
# shellcheck disable=SC2034,SC2054,SC2154 # shared with the scripts that source it; QEMU's arguments have commas

# Disks have a fixed size: their content arrives after the machine's state was saved.
tools_size=2G
payload_size=2G

# The other end of the machine's network card: the tap device that MONOHULL_CABLE names, else nothing.
cable=hubport,hubid=0
[ -z "${MONOHULL_CABLE:-}" ] || cable=tap,script=no,downscript=no,ifname=$MONOHULL_CABLE

# emulator MODE IMAGE INITRAMFS DIR [ARG…]: becomes QEMU. MODE is `fast` or `icount`; DIR holds tools.erofs,
# payload.erofs and the FIFOs control.in, control.out and heartbeat, and receives console.log, output and results.
#
# SVM is the only nested virtualization QEMU emulates. EPYC with nested paging, on q35, is what was found to
# boot reliably and quickest (without nested paging a guest's boot takes four times as long).
emulator() {
    local mode=$1 image=$2 initramfs=$3 dir=$4
    shift 4
    local accel=(-accel tcg,thread=multi -smp "$host_cpus")
    if [ "$mode" = icount ]; then
        accel=(-accel tcg,thread=single -icount shift=0,sleep=off -smp 1)
    fi
    local disks=() disk
    for disk in "$image/root" "$dir/tools" "$dir/payload"; do
        disks+=(-drive "file=$disk.erofs,format=raw,if=none,id=${disk##*/},readonly=on,cache=unsafe"
            -device "virtio-blk-pci,drive=${disk##*/}")
    done
    # Features of EPYC which QEMU can't emulate and would warn of, twice each.
    local cpu=EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec
    exec qemu-system-x86_64 -name monohull-test-host -M q35 "${accel[@]}" -cpu "$cpu" -m "$host_memory" \
        -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$image/vmlinuz" -initrd "$initramfs" \
        -append 'console=ttyS0 quiet panic=-1 reboot=t mitigations=off random.trust_cpu=on' \
        -serial "file:$dir/console.log" \
        "${disks[@]}" \
        -device virtio-rng-pci \
        -netdev "$cable,id=cable" -device virtio-net-pci,netdev=cable,mac=52:54:00:6d:6f:6e,romfile= \
        -device virtio-serial-pci \
        -chardev "pipe,id=control,path=$dir/control" -device virtserialport,chardev=control,name=control \
        -chardev "file,id=output,path=$dir/output" -device virtserialport,chardev=output,name=output \
        -chardev "file,id=results,path=$dir/results" -device virtserialport,chardev=results,name=results \
        -device virtserialport,chardev=terminal,name=terminal \
        -chardev "pipe,id=heartbeat,path=$dir/heartbeat" -device virtserialport,chardev=heartbeat,name=heartbeat \
        "$@"
}
