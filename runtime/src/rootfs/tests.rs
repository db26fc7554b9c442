use std::fs::{self, File};
use std::path::Path;

use super::*;

const BASE: &str = "/g";

fn mount(fstype: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { fstype: fstype.into(), source: source.into(), target: String::new(), options }
}

fn plan_of(mounts: &[Mount]) -> Result<Vec<Storage<Planned>>, RootfsError> {
    plan(&Rootfs::Mounts(mounts.to_vec()), false, BASE)
}

/// "type source target options [directories]" of each storage.
fn summary(storages: &[Storage<Planned>]) -> Vec<String> {
    let line = |storage: &Storage<Planned>| {
        let source = match &storage.source {
            Planned::Image { path, read_only } => {
                format!("{}{}", path.display(), if *read_only { ":ro" } else { "" })
            }
            Planned::Tree(SharedTree { tree, read_only, .. }) => {
                format!("{tree}{}", if *read_only { ":ro" } else { "" })
            }
            Planned::Path(path) => (*path).to_owned(),
            Planned::Name(name) => format!("name({name})"),
        };
        let (target, options) = (&storage.target, storage.options.join(","));
        format!("{} {source} {target} {options} [{}]", storage.fstype, storage.directories.join(","))
    };
    storages.iter().map(line).collect()
}

/// The tmpfs and overlay over `lower`.
fn upper(lower: &str) -> [String; 2] {
    [
        "tmpfs tmpfs /g/rw mode=0755 [upper,work]".into(),
        format!("overlay overlay /g/rootfs lowerdir={lower},upperdir=/g/rw/upper,workdir=/g/rw/work []"),
    ]
}

fn refusal(mounts: &[Mount]) -> String {
    let error = plan_of(mounts).unwrap_err();
    assert!(error.is_refusal(), "{error:?}");
    error.to_string()
}

#[test]
fn a_directory_or_overlay_of_the_host_is_the_root_itself() {
    let root = Rootfs::Directory("/d".into());
    assert_eq!(summary(&plan(&root, false, BASE).unwrap()), ["virtiofs /d /g/rootfs  []"]);
    let bind = mount("bind", "/d", &["rbind", "rw"]);
    assert_eq!(summary(&plan_of(&[bind]).unwrap()), ["virtiofs /d /g/rootfs  []"]);
    let overlay = mount("overlay", "overlay", &["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"]);
    assert_eq!(
        summary(&plan_of(&[overlay]).unwrap()),
        ["virtiofs an overlay of 3 directories /g/rootfs  []"]
    );
}

/// CVE-2026-24054: a bind mount that was taken for a block device, which the guest then had as its disk.
#[test]
fn a_bind_mount_is_never_a_disk_whatever_its_source_is() {
    for source in ["/dev/sda", "/dev/mapper/root", "/dev/null", "/etc/passwd"] {
        for (bind, read_only) in
            [(mount("bind", source, &["rbind"]), ""), (mount("bind", source, &["ro"]), ":ro")]
        {
            let shared = format!("virtiofs {source}{read_only} /g/rootfs  []");
            assert_eq!(summary(&plan_of(&[bind]).unwrap())[0].replace("/lower", "/rootfs"), shared);
        }
    }
}

#[test]
fn what_is_not_written_to_is_read_only_and_gets_mount_points_in_guest_memory() {
    let expected = |source: &str| {
        let lower = format!("virtiofs {source}:ro /g/lower  []");
        [lower].into_iter().chain(upper("/g/lower")).collect::<Vec<_>>()
    };
    let root = Rootfs::Directory("/d".into());
    assert_eq!(summary(&plan(&root, true, BASE).unwrap()), expected("/d"));
    let writable = mount("overlay", "overlay", &["workdir=/w", "upperdir=/u", "lowerdir=/a"]);
    let root = Rootfs::Mounts(vec![writable]);
    assert_eq!(summary(&plan(&root, true, BASE).unwrap()), expected("an overlay of 2 directories"));
    for read_only in [mount("bind", "/a", &["rbind", "ro"]), mount("overlay", "overlay", &["lowerdir=/a"])] {
        assert_eq!(summary(&plan_of(&[read_only]).unwrap()), expected("/a"));
    }
}

#[test]
fn a_writable_image_is_the_root_itself() {
    let ext4 = mount("ext4", "/dev/mapper/p-1", &["loop", "rw", "noatime"]);
    assert_eq!(summary(&plan_of(&[ext4]).unwrap()), ["ext4 /dev/mapper/p-1 /g/rootfs noatime []"]);
}

#[test]
fn an_image_that_is_read_only_gets_an_upper_layer() {
    for (fstype, options) in [("erofs", &["loop"][..]), ("xfs", &["ro", "loop"])] {
        let storages = summary(&plan_of(&[mount(fstype, "/i", options)]).unwrap());
        assert_eq!(storages[0], format!("{fstype} /i:ro /g/lower ro []"));
        assert_eq!(storages[1..], upper("/g/lower"));
    }
}

#[test]
fn layers_under_a_template_are_joined_in_its_order() {
    let layers = [mount("erofs", "/2", &["ro", "loop"]), mount("erofs", "/1", &["ro", "loop"])];
    let overlay = |lower: &str| {
        let lower = format!("lowerdir={lower}");
        let options = ["workdir=/none/w", "upperdir=/none/u", "X-containerd.mkdir.path=/none/u:0755", &lower];
        plan_of(&[&layers[..], &[mount("format/mkdir/overlay", "overlay", &options)]].concat())
    };
    let storages = summary(&overlay("{{ overlay 0 1 }}").unwrap());
    assert_eq!(storages[..2], ["erofs /2:ro /g/layers/0 ro []", "erofs /1:ro /g/layers/1 ro []"]);
    assert_eq!(storages[2..], upper("/g/layers/0:/g/layers/1"));
    let reversed = summary(&overlay("{{overlay 1 0}}").unwrap());
    assert_eq!(reversed[2..], upper("/g/layers/1:/g/layers/0"));
    for bad in
        ["{{ overlay 0 2 }}", "{{ mount 0", "{{ source 0 }}", "{{ mount -1 }}", "{{ mount 0 }}:/host", ""]
    {
        assert!(
            overlay(bad).unwrap_err().to_string().starts_with("rootfs[2] (format/mkdir/overlay): "),
            "{bad}"
        );
    }
}

#[test]
fn a_writable_layer_under_a_template_holds_upper_and_work() {
    let storages = plan_of(&[
        mount("ext4", "/rw.img", &["X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=64", "rw", "loop"]),
        mount("erofs", "/1", &["ro", "loop"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                "workdir={{ mount 0 }}/work",
                "upperdir={{ mount 0 }}/upper",
                "lowerdir={{ mount 1 }}",
            ],
        ),
    ]);
    let expected = [
        "ext4 /rw.img /g/layers/0  [upper,work]",
        "erofs /1:ro /g/layers/1 ro []",
        "overlay overlay /g/rootfs lowerdir=/g/layers/1,upperdir=/g/layers/0/upper,workdir=/g/layers/0/work []",
    ];
    assert_eq!(summary(&storages.unwrap()), expected);
}

#[test]
fn what_an_upper_directory_of_the_host_holds_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("written"), "before").unwrap();
    let upperdir = format!("upperdir={}", dir.path().display());
    let storages = plan_of(&[
        mount("erofs", "/1", &["ro"]),
        mount("format/overlay", "overlay", &["workdir=/w", &upperdir, "lowerdir={{ mount 0 }}"]),
    ]);
    let storages = summary(&storages.unwrap());
    assert_eq!(storages[1], format!("virtiofs {}:ro /g/upper  []", dir.path().display()));
    assert_eq!(storages[2..], upper("/g/upper:/g/layers/0"));
}

/// Only root may make the mark.
#[test]
fn a_directory_that_replaces_one_of_the_image_is_refused_in_an_upper_directory_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let replaced = dir.path().join("etc/replaced");
    fs::create_dir_all(&replaced).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&replaced, "trusted.overlay.opaque", b"y", flags).unwrap();
    let upperdir = format!("upperdir={}", dir.path().display());
    let planned = plan_of(&[
        mount("erofs", "/1", &["ro"]),
        mount("format/overlay", "overlay", &["workdir=/w", &upperdir, "lowerdir={{ mount 0 }}"]),
    ]);
    let message = planned.unwrap_err().to_string();
    assert!(message.contains("etc/replaced replaces a directory of the image"), "{message}");
}

#[test]
fn what_is_not_supported_is_refused_by_place_and_name() {
    let ok = mount("erofs", "/1", &["ro"]);
    let template = |options: &[&str]| mount("format/mkdir/overlay", "overlay", options);
    for (mounts, words) in [
        (vec![], "names no mounts"),
        (vec![mount("btrfs", "/x", &[])], "rootfs[0] (btrfs): type"),
        (vec![mount("erofs", "1", &[])], "not an absolute path"),
        (vec![mount("erofs", "/1", &["device=/2"])], "device="),
        (vec![mount("erofs", "/1", &["X-containerd.dmverity=/j"])], "dmverity"),
        (vec![ok.clone(), ok.clone()], "rootfs[1] (erofs): only a format/overlay"),
        (vec![Mount { target: "/etc".into(), ..ok.clone() }], "target"),
        (vec![ok.clone(), mount("format/odd/overlay", "overlay", &["lowerdir={{ mount 0 }}"])], "odd/"),
        (vec![ok.clone(), template(&["X-containerd.mkdir.path={{ mount 0 }}/../x:0755"])], "0755"),
        (vec![ok.clone(), template(&["X-containerd.mkdir.path={{ mount 0 }}/x:0777"])], "0755"),
    ] {
        let error = refusal(&mounts);
        assert!(error.contains(words), "{error} has no {words}");
    }
}

#[test]
fn only_files_and_block_devices_of_whole_sectors_are_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, [0; 1024]).unwrap();
    image::open(&path, true).unwrap();
    for size in [0, 1000] {
        File::create(&path).unwrap().set_len(size).unwrap();
        let error = image::open(&path, true).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains(&format!("{size} bytes")), "{error}");
    }
    for odd in [Path::new("/dev/null"), dir.path()] {
        assert!(matches!(image::open(odd, true), Err(RootfsError::Kind { .. })), "{odd:?}");
    }
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(image::open(&fifo, true), Err(RootfsError::Kind { .. })));
    assert!(matches!(image::open(&dir.path().join("none"), true), Err(RootfsError::Open(..))));
}
