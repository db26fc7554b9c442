use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::*;

const BASE: &str = "/g";

fn mount(fstype: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { fstype: fstype.into(), source: source.into(), target: String::new(), options }
}

fn plan_of(mounts: &[Mount]) -> Result<Vec<Storage<Planned>>, RootfsError> {
    plan(&Rootfs::Mounts(mounts.to_vec()), BASE)
}

/// "type source target options [directories]" of each storage.
fn summary(storages: &[Storage<Planned>]) -> Vec<String> {
    let line = |storage: &Storage<Planned>| {
        let source = match &storage.source {
            Planned::Image { path, read_only } => {
                format!("{}{}", path.display(), if *read_only { ":ro" } else { "" })
            }
            Planned::Tree(Tree::Directory(path)) => format!("pack({})", path.display()),
            Planned::Tree(Tree::Overlay(overlay)) => format!("pack({} layers)", overlay.layers()),
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
fn a_directory_is_packed_and_made_writable_in_guest_memory() {
    let expected: Vec<_> =
        ["erofs pack(/d) /g/lower ro []".to_owned()].into_iter().chain(upper("/g/lower")).collect();
    assert_eq!(summary(&plan(&Rootfs::Directory("/d".into()), BASE).unwrap()), expected);
    let bind = mount("bind", "/d", &["rbind", "rw"]);
    assert_eq!(summary(&plan_of(&[bind]).unwrap()), expected);
}

#[test]
fn an_overlay_of_the_host_is_packed_as_one_tree() {
    let overlay = mount("overlay", "overlay", &["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"]);
    assert_eq!(summary(&plan_of(&[overlay]).unwrap())[0], "erofs pack(3 layers) /g/lower ro []");
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
    assert_eq!(storages[1], format!("erofs pack({}) /g/upper ro []", dir.path().display()));
    assert_eq!(storages[2..], upper("/g/upper:/g/layers/0"));
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

/// Packs and returns the image's bytes.
async fn packed_bytes(tree: Tree, scratch: &Path) -> Vec<u8> {
    let image = pack::pack(tree, scratch).await.unwrap();
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 0, "the image has a name");
    let image = File::from(image);
    assert_eq!(image.metadata().unwrap().len() % 512, 0);
    let mut bytes = vec![0; image.metadata().unwrap().len().try_into().unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(&image, &mut bytes, 0).unwrap();
    bytes
}

/// The tree in an image: path, mode, owner, modification time and content of each file, by a loop mount.
fn contents(image: &[u8], names: &[&str]) -> Vec<Option<(u32, u32, i64, String)>> {
    let dir = tempfile::tempdir().unwrap();
    let (file, point) = (dir.path().join("image"), dir.path().join("mount"));
    fs::write(&file, image).unwrap();
    fs::create_dir(&point).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&file).arg(&point).status().unwrap();
    assert!(mounted.success());
    let describe = |name: &&str| {
        let path = point.join(name);
        let metadata = fs::symlink_metadata(&path).ok()?;
        let text = fs::read_to_string(&path).unwrap_or_default();
        Some((metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.mtime(), text))
    };
    let found = names.iter().map(describe).collect();
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    found
}

#[tokio::test]
async fn a_packed_tree_keeps_modes_owners_times_and_is_the_same_every_time() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = root.path().join("file");
    fs::write(&file, "content").unwrap();
    std::os::unix::fs::chown(&file, Some(1234), Some(1)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    symlink("/nowhere", root.path().join("link")).unwrap();
    let tree = || Tree::Directory(root.path().into());

    let image = packed_bytes(tree(), scratch.path()).await;
    let expected = Some((0o4751, 1234, 1_000_000_000, "content".to_owned()));
    let found = contents(&image, &["file", "link", "none"]);
    assert_eq!(found[0], expected);
    assert!(found[1].is_some() && found[2].is_none());
    assert_eq!(packed_bytes(tree(), scratch.path()).await, image);
}

#[tokio::test]
async fn a_packed_overlay_is_the_merged_view_of_many_layers_and_no_mount_is_seen() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Long names, and more of them than a page of mount options holds.
    let layer = |n: usize| root.path().join(format!("{n:060}"));
    for n in 0..120 {
        fs::create_dir(layer(n)).unwrap();
        fs::write(layer(n).join(format!("only-{n}")), "").unwrap();
        fs::write(layer(n).join("all"), n.to_string()).unwrap();
    }
    let upper = root.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let whiteout = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&upper.join("only-5"), whiteout, nix::sys::stat::Mode::empty(), 0).unwrap();
    let lower: Vec<_> = (0..120).map(|n| layer(n).display().to_string()).collect();
    let options = [
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", upper.display()),
        "workdir=/w".into(),
    ];

    let image = packed_bytes(HostOverlay::parse(&options).unwrap().into_tree(), scratch.path()).await;

    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(scratch.path().to_str().unwrap()), "{mounts}");
    let found = contents(&image, &["all", "only-119", "only-5"]);
    assert_eq!(found[0].as_ref().unwrap().3, "0");
    assert!(found[1].is_some(), "the lowest layer");
    assert!(found[2].is_none(), "a deleted file");
}

#[tokio::test]
async fn a_tree_that_is_not_there_fails_with_the_packers_words() {
    let scratch = tempfile::tempdir().unwrap();
    let error = pack::pack(Tree::Directory("/nonexistent".into()), scratch.path()).await.unwrap_err();
    assert!(
        matches!(&error, PackError::Failed { messages, .. } if messages.contains("No such file")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_is_left_on_it() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(root.path().join("large"), vec![1; 1 << 20]).unwrap();
    let size = Some("size=256k");
    nix::mount::mount(Some("tmpfs"), scratch.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), size)
        .unwrap();
    let error = pack::pack(Tree::Directory(root.path().into()), scratch.path()).await.unwrap_err();
    let stat = nix::sys::statvfs::statvfs(scratch.path()).unwrap();
    nix::mount::umount(scratch.path()).unwrap();
    assert!(matches!(error, PackError::Full(_)), "{error:?}");
    assert_eq!(stat.blocks_free(), stat.blocks());
}

#[tokio::test]
async fn giving_up_kills_the_packer() {
    let (root, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for n in 0..64 {
        File::create(root.path().join(n.to_string())).unwrap().set_len(64 << 20).unwrap();
    }
    let tree = Tree::Directory(root.path().into());
    let packing = pack::pack(tree, scratch.path());
    let began = std::time::Instant::now();
    assert!(tokio::time::timeout(std::time::Duration::from_millis(200), packing).await.is_err());
    // The packer's argument tells it from those of other tests.
    let packs_our_tree = |pid: &str| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains(&root.path().display().to_string())
    };
    while fs::read_dir("/proc").unwrap().flatten().any(|e| packs_our_tree(&e.file_name().to_string_lossy())) {
        assert!(began.elapsed() < std::time::Duration::from_secs(2), "the packer goes on");
        std::thread::yield_now();
    }
}
