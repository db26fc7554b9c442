# A bill of materials in CycloneDX 1.6. release/sbom gives all that it is made of by name.

def uuid: "urn:uuid:\(.[0:8])-\(.[8:12])-8\(.[13:16])-a\(.[17:20])-\(.[20:32])";

def sha256: [{alg: "SHA-256", content: .}];

# SPDX has no slash, which older crates mean an OR by.
def licences:
    if .license then [{expression: (.license | gsub(" */ *"; " OR "))}]
    else [{license: {name: "in the crate's file \(.license_file)"}}] end;

# Crates of this tree are on no registry, so they have no package URL.
def crate_ref: if $checksums[.] then "pkg:cargo/\(sub("@"; "@"))" else "monohull:\(.)" end;

def crate($kind):
    . as $id
    | $crates[$id]
    | {
        type: "library", "bom-ref": ($id | crate_ref), name, version,
        scope: (if $kind == "linked" then "required" else "excluded" end),
        hashes: (if $checksums[$id] then $checksums[$id] | sha256 else null end),
        licenses: licences,
        purl: (if $checksums[$id] then "pkg:cargo/\($id)" else null end),
        externalReferences: (if .repository then [{type: "vcs", url: .repository}] else null end)
      }
    | with_entries(select(.value != null));

# A Debian package: a static library, or the source of the kernel.
def debian:
    "pkg:deb/debian/\(.name)@\(.version | gsub("\\+"; "%2B"))?arch=\(.arch)&distro=\($distribution)" as $purl
    | {type: "library", "bom-ref": $purl, name, version, scope: "required", purl: $purl}
    + if .hash then {hashes: (.hash | sha256)} else {} end
    + if .licence then {licenses: [{expression: .licence}]} else {} end;

def rust:
    "pkg:github/rust-lang/rust@\($rust.commit)" as $purl
    | {
        type: "library", "bom-ref": $purl, name: "rust-std", version: $rust.release, scope: "required",
        licenses: [{expression: "MIT OR Apache-2.0"}], purl: $purl,
        cpe: "cpe:2.3:a:rust-lang:rust:\($rust.release):*:*:*:*:*:*:*"
      };

# The edges of one program's tree, as release/common.sh prints them.
def program:
    ($edges | split("\n") | map(select(. != "") | split("|"))) as $edges
    | ($edges | map(select(.[1] != ""))) as $edges
    | (reduce $edges[] as $edge ({};
        if .[$edge[2]] == "linked" then . else .[$edge[2]] = $edge[3] end)) as $kinds
    | ($debian | map(debian)) as $libraries
    | ($subject + "@" + $version) as $self
    | {
        component: ($crates[$self] | {
            type: "application", "bom-ref": "monohull:\($self)", name: $file, version, description,
            licenses: licences, hashes: ($hash | sha256),
            properties: [{name: "monohull:installed-file", value: "/\($path)"}]
        }),
        components: ([$kinds | to_entries[] | .value as $kind | .key | crate($kind)] + $libraries + [rust]),
        dependencies: (
            ($edges | group_by(.[1]) | map({
                ref: (.[0][1] | crate_ref), dependsOn: (map(.[2] | crate_ref) | unique)
            }))
            | map(if .ref == "monohull:\($self)"
                  then .dependsOn += ($libraries | map(."bom-ref")) + [rust."bom-ref"] else . end)
        )
      };

def kernel:
    ($debian[0] | debian) as $source
    | {
        component: {
            type: "operating-system", "bom-ref": "monohull:vmlinux", name: "linux", version: $kernel.release,
            description: "The kernel of a pod's VM.", licenses: [{expression: "GPL-2.0-only WITH Linux-syscall-note"}],
            hashes: ($hash | sha256),
            cpe: "cpe:2.3:o:linux:linux_kernel:\($kernel.release | sub("-.*"; "")):*:*:*:*:*:*:*",
            properties: [{name: "monohull:installed-file", value: "/\($path)"}]
        },
        components: [
            $source + {type: "operating-system"},
            {type: "file", "bom-ref": "monohull:kernel-config", name: "kernel-config/fragments/*.config", hashes: ($kernel.config | sha256),
             description: "What is switched on, over allnoconfig; the hash is of all fragments, one after another."}
        ],
        dependencies: [{ref: "monohull:vmlinux", dependsOn: [$source."bom-ref", "monohull:kernel-config"]}]
      };

(if $file == "vmlinux" then kernel else program end) as $made
| {
    bomFormat: "CycloneDX", specVersion: "1.6", version: 1,
    serialNumber: ($serial | uuid),
    metadata: {
        timestamp: ($epoch | tonumber | todate),
        lifecycles: [{phase: "build"}],
        component: $made.component,
        properties: [{name: "monohull:commit", value: $commit}]
    },
    components: ($made.components | sort_by(."bom-ref")),
    dependencies: ($made.dependencies | sort_by(.ref))
  }
