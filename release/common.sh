# shellcheck shell=bash
# What the scripts of a release share. Sourced, never run.
# shellcheck disable=SC2034 # used by the scripts that source this file

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=$top/build/root
target=x86_64-unknown-linux-gnu
kernel_package=linux-source-6.12
kernel_source=/usr/src/$kernel_package.tar.xz
export LC_ALL=C TZ=UTC PATH=$PATH:$HOME/.cargo/bin

# What `make build` compiles, in one go: features of the crates that they share are united.
packages=(containerd-shim-monohull monohull-agent monohull-fs monohull-initramfs monohull-runtime monohull-vmm)
# Program, its package, and the installed file that it is, or is in.
programs=(
    'containerd-shim-monohull-v2 containerd-shim-monohull usr/local/bin/containerd-shim-monohull-v2'
    'monohull monohull-runtime usr/local/bin/monohull'
    'monohull-agent monohull-agent usr/share/monohull/initramfs.cpio'
    'monohull-fs monohull-fs usr/libexec/monohull/monohull-fs'
    'monohull-vmm monohull-vmm usr/libexec/monohull/monohull-vmm'
)

# say and die speak in the name of the script that runs.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# need COMMAND…: stops with the fix when a command is missing.
need() {
    local command
    for command in "$@"; do
        command -v "$command" > /dev/null || die "the command $command is missing; run 'make setup'"
    done
}

# built: stops unless `make build` has made everything that is installed, the kernel of this tree among it.
built() {
    local program package file
    while read -r program package file; do
        [ -f "$root/$file" ] || die "build/root has no /$file: run 'make build' first"
    done < <(printf '%s\n' "${programs[@]}" "- - usr/share/monohull/vmlinux")
    cmp -s "$root/usr/share/monohull/vmlinux" "$("$top/kernel-config/build" --print-path)" ||
        die "build/root has another guest kernel than kernel-config describes: run 'make build' first"
}

# generate DIRECTORY: writes below it what the command line says of itself, manual pages and completions.
generate() {
    local tool=$root/usr/local/bin/monohull shell file
    "$tool" man "$1/usr/share/man/man1"
    while read -r shell file; do
        mkdir -p "$1/usr/share/${file%/*}"
        "$tool" completions "$shell" > "$1/usr/share/$file"
    done << 'END'
bash bash-completion/completions/monohull
zsh zsh/site-functions/_monohull
fish fish/vendor_completions.d/monohull.fish
END
}

# trees ARGUMENT…: cargo's tree of every program as it is built. `root|parent|crate|kind`, a line for each edge; crates are
# name@version, and kind is "macro" for what runs in the compiler only.
trees() {
    (cd "$top" && cargo tree --locked --quiet --target "$target" --prefix depth --no-dedupe -f ' {p}' "$@" "${packages[@]/#/-p}") |
        awk '
            NF == 0 { next }
            {
                depth = $1
                id = $2 "@" substr($3, 2)
                at[depth] = id
                if (depth == 0) { root = $2; macros = 1e9 }
                if (depth <= macros) macros = /\(proc-macro\)/ ? depth : 1e9
                print root "|" (depth ? at[depth - 1] : "") "|" id "|" (macros <= depth ? "macro" : "linked")
            }' | sort -u
}

# epoch: when this commit was made, in seconds of 1970. All that a release writes is of that time.
epoch() { echo "${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct)}"; }

# commit: what is built. With "-dirty" when files differ from it.
commit() { git -C "$top" describe --always --abbrev=40 --exclude '*' --dirty; }

# crate_version: of all our programs.
crate_version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml"; }

# version: that of a release when its tag is here and nothing was changed, else one that sorts before it.
version() {
    local version
    version=$(crate_version)
    if [ "$(git -C "$top" describe --exact-match --dirty 2> /dev/null)" = "v$version" ]; then
        echo "$version"
    else
        echo "$version~dev.$(date -d "@$(epoch)" +%Y%m%d).$(git -C "$top" describe --always --abbrev=8 --exclude '*' --dirty=.dirty)"
    fi
}

# kernel_version: as the guest kernel itself says.
kernel_version() {
    grep -aom1 -E 'Linux version [^ ]+ \(' "$root/usr/share/monohull/vmlinux" | head -n 1 | cut -d ' ' -f 3
}

# debian_version PACKAGE: the version that is installed here.
debian_version() {
    dpkg-query -W -f '${Version}' "$1" 2> /dev/null || die "the package $1 is not installed; run 'make setup'"
}

# libraries CRATE@VERSION…: Debian's packages of the static libraries that a program with these crates has linked in.
libraries() {
    echo libc6-dev
    echo "libgcc-$(gcc -dumpversion | cut -d . -f 1)-dev"
    if grep -q '^libseccomp-sys@' <<< "$*"; then echo libseccomp-dev; fi
    if grep -q '^capng@' <<< "$*"; then echo libcap-ng-dev; fi
}

# hash_of FILE, or of standard input.
hash_of() { sha256sum "$@" | cut -d ' ' -f 1; }
