use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;

mod bounds;

/// Nobody stops these tests.
static GO: AtomicBool = AtomicBool::new(false);

/// An entry of a layer, its name written as it is: `tar::Builder` would refuse the hostile ones.
struct Item {
    name: &'static str,
    kind: EntryType,
    link: &'static str,
    data: &'static [u8],
    mode: u32,
}

fn file(name: &'static str, data: &'static str) -> Item {
    Item { name, kind: EntryType::Regular, link: "", data: data.as_bytes(), mode: 0o644 }
}

fn directory(name: &'static str) -> Item {
    Item { name, kind: EntryType::Directory, link: "", data: b"", mode: 0o755 }
}

fn symlink(name: &'static str, link: &'static str) -> Item {
    Item { name, kind: EntryType::Symlink, link, data: b"", mode: 0o777 }
}

fn hard_link(name: &'static str, link: &'static str) -> Item {
    Item { name, kind: EntryType::Link, link, data: b"", mode: 0o644 }
}

fn layer(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..item.name.len()].copy_from_slice(item.name.as_bytes());
        old.linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_entry_type(item.kind);
        header.set_size(item.data.len() as u64);
        header.set_mode(item.mode);
        header.set_mtime(1_000_000_000);
        // Files of the user who runs the test: the test needs no privileges.
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_cksum();
        builder.append(&header, item.data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn digest(data: &[u8]) -> String {
    sha256(Sha256::new_with_prefix(data))
}

fn put(root: &Path, data: &[u8]) -> serde_json::Value {
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&digest(data)[7..]), data).unwrap();
    json!({ "mediaType": "application/octet-stream", "digest": digest(data), "size": data.len() })
}

fn config(diff_ids: &[String]) -> Vec<u8> {
    let config = json!({
        "os": "linux",
        "architecture": "amd64",
        "config": { "Entrypoint": ["/bin/busybox"], "Cmd": null, "Env": ["A=1"], "User": "1:2" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    serde_json::to_vec(&config).unwrap()
}

/// Writes a layout with one image and returns the descriptor of its manifest.
fn write_layout(root: &Path, blobs: &[Vec<u8>], diff_ids: &[String]) -> serde_json::Value {
    let layers: Vec<_> = blobs.iter().map(|blob| put(root, blob)).collect();
    let config = put(root, &config(diff_ids));
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest = put(root, &serde_json::to_vec(&manifest).unwrap());
    write_index(root, std::slice::from_ref(&manifest));
    manifest
}

fn write_index(root: &Path, manifests: &[serde_json::Value]) {
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    fs::write(root.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A layout of uncompressed layers, opened.
fn image(layers: &[&[Item]]) -> (TempDir, Image) {
    let directory = TempDir::new().unwrap();
    let blobs: Vec<_> = layers.iter().map(|items| layer(items)).collect();
    let diff_ids: Vec<_> = blobs.iter().map(|blob| digest(blob)).collect();
    write_layout(directory.path(), &blobs, &diff_ids);
    let image = Image::open(directory.path(), directory.path()).unwrap();
    (directory, image)
}

/// Where layers are unpacked, in a fresh directory. These tests must be harmless even where the code under test is
/// broken and they run as root: every link and name in them leads at most to that fresh directory, never to "/".
const ROOT: &str = "one/two/root";

/// Unpacks layers below a fresh directory, which also holds files that must not change.
fn unpack(layers: &[&[Item]]) -> (TempDir, Result<(), ImageError>) {
    unpack_in(TempDir::new().unwrap(), layers)
}

fn unpack_in(outside: TempDir, layers: &[&[Item]]) -> (TempDir, Result<(), ImageError>) {
    let (_layout, image) = image(layers);
    let around = [outside.path().to_owned(), outside.path().join("one"), outside.path().join("one/two")];
    fs::create_dir_all(outside.path().join(ROOT)).unwrap();
    for directory in &around {
        fs::write(directory.join("precious"), "precious").unwrap();
    }
    let result = image.unpack(&outside.path().join(ROOT), &GO);
    for directory in &around {
        assert_eq!(fs::read(directory.join("precious")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(directory).unwrap().count(), 2, "something was written beside the root");
    }
    (outside, result)
}

fn listing(outside: &TempDir) -> Vec<String> {
    fn walk(root: &Path, directory: &Path, all: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            all.push(path.strip_prefix(root).unwrap().display().to_string());
            if path.is_dir() && !path.is_symlink() {
                walk(root, &path, all);
            }
        }
    }
    let mut all = Vec::new();
    walk(&outside.path().join(ROOT), &outside.path().join(ROOT), &mut all);
    all.sort();
    all
}

#[test]
fn layout_with_gzip_layers_unpacks_and_tells_its_configuration() {
    let layout = TempDir::new().unwrap();
    let plain = layer(&[directory("bin/"), file("bin/sh", "#!")]);
    write_layout(layout.path(), &[gzip(&plain)], &[digest(&plain)]);

    let image = Image::open(layout.path(), layout.path()).unwrap();
    let root = TempDir::new().unwrap();
    image.unpack(root.path(), &GO).unwrap();

    let expected = ImageConfig {
        entrypoint: Some(vec!["/bin/busybox".into()]),
        cmd: None,
        env: Some(vec!["A=1".into()]),
        working_dir: None,
        user: Some("1:2".into()),
    };
    assert_eq!(*image.config(), expected);
    assert_eq!(fs::read(root.path().join("bin/sh")).unwrap(), b"#!");
    assert_eq!(fs::metadata(root.path().join("bin")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn layout_in_a_tar_archive_is_the_same_image_compressed_or_not() {
    let layout = TempDir::new().unwrap();
    let plain = layer(&[file("hello", "hello")]);
    write_layout(layout.path(), &[gzip(&plain)], &[digest(&plain)]);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", layout.path()).unwrap();
    let archive = builder.into_inner().unwrap();

    for bytes in [gzip(&archive), archive] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("image.tar");
        fs::write(&path, bytes).unwrap();
        let image = Image::open(&path, directory.path()).unwrap();
        let root = TempDir::new().unwrap();
        image.unpack(root.path(), &GO).unwrap();
        assert_eq!(fs::read(root.path().join("hello")).unwrap(), b"hello");
    }
}

/// An archive as `docker save` wrote it before version 25; its second layer is a link to the first.
fn docker_archive(directory: &Path, config_name: Option<&str>) -> PathBuf {
    let plain = layer(&[file("hello", "hello")]);
    let config = config(&[digest(&plain), digest(&plain)]);
    let config_name =
        config_name.map_or_else(|| format!("{}.json", &digest(&config)[7..]), ToOwned::to_owned);
    let manifest = json!([{
        "Config": config_name, "RepoTags": ["hello:latest"], "Layers": ["one/layer.tar", "two/layer.tar"],
    }]);
    let mut builder = tar::Builder::new(fs::File::create(directory.join("image.tar")).unwrap());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data).unwrap();
    };
    add("one/layer.tar", &plain);
    add(&config_name, &config);
    add("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "two/layer.tar", "../one/layer.tar").unwrap();
    builder.finish().unwrap();
    directory.join("image.tar")
}

#[test]
fn docker_archive_unpacks_with_a_layer_that_is_a_link() {
    let directory = TempDir::new().unwrap();

    let image = Image::open(&docker_archive(directory.path(), None), directory.path()).unwrap();
    let root = TempDir::new().unwrap();
    image.unpack(root.path(), &GO).unwrap();

    assert_eq!(fs::read(root.path().join("hello")).unwrap(), b"hello");
}

#[test]
fn docker_archive_whose_configuration_is_not_what_its_name_says_is_refused() {
    let directory = TempDir::new().unwrap();
    let name = format!("{}.json", "0".repeat(64));

    let result = Image::open(&docker_archive(directory.path(), Some(&name)), directory.path());

    assert!(matches!(result, Err(ImageError::Digest(_))), "{result:?}");
}

#[test]
fn busybox_image_made_on_the_spot_keeps_contents_and_permissions() {
    let busybox = fs::read("/usr/bin/busybox").or_else(|_| fs::read("/proc/self/exe")).unwrap();
    let mut item = file("bin/busybox", "");
    item.data = busybox.clone().leak();
    item.mode = 0o4755;

    let (outside, result) = unpack(&[&[item, symlink("bin/sh", "busybox")]]);

    result.unwrap();
    let path = outside.path().join(ROOT).join("bin/busybox");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(fs::read(outside.path().join(ROOT).join("bin/sh")).unwrap(), busybox);
}

#[test]
fn parent_directory_in_a_name_is_refused() {
    for name in ["../precious", "a/../../precious", "..", "a/.."] {
        let (_outside, result) = unpack(&[&[file(name, "evil")]]);
        assert!(matches!(result, Err(ImageError::Layer(1, LayerError::Refused(..)))), "{name}: {result:?}");
    }
    let (_outside, result) = unpack(&[&[hard_link("stolen", "../precious")]]);
    assert!(matches!(result, Err(ImageError::Layer(1, LayerError::Refused(..)))), "{result:?}");
}

#[test]
fn absolute_name_stays_below_the_root() {
    let outside = TempDir::new().unwrap();
    let name: &'static str = format!("{}/precious", outside.path().display()).leak();

    let (outside, result) = unpack_in(outside, &[&[file(name, "evil")]]);

    result.unwrap();
    assert_eq!(fs::read(outside.path().join(ROOT).join(name.trim_start_matches('/'))).unwrap(), b"evil");
}

#[test]
fn symbolic_link_cannot_lead_a_later_layer_out() {
    for link in ["..", "../..", "a/../../.."] {
        let (outside, result) =
            unpack(&[&[directory("a"), symlink("out", link)], &[file("out/precious", "evil")]]);
        result.unwrap();
        assert_eq!(fs::read(outside.path().join(ROOT).join("precious")).unwrap(), b"evil", "{link}");
    }
}

#[test]
fn absolute_symbolic_link_does_not_lead_to_the_hosts_directory() {
    let outside = TempDir::new().unwrap();
    let link: &'static str = outside.path().to_str().unwrap().to_owned().leak();
    let in_root: &'static str = format!("{link}/there").leak();

    let (outside, result) =
        unpack_in(outside, &[&[file(in_root, ""), symlink("out", link)], &[file("out/precious", "evil")]]);

    result.unwrap();
    let inside = outside.path().join(ROOT).join(link.trim_start_matches('/'));
    assert_eq!(fs::read(inside.join("precious")).unwrap(), b"evil");
}

#[test]
fn symbolic_link_in_the_last_place_is_replaced_not_followed() {
    let (outside, result) = unpack(&[&[symlink("f", "../precious")], &[file("f", "evil")]]);

    result.unwrap();
    assert!(fs::symlink_metadata(outside.path().join(ROOT).join("f")).unwrap().is_file());
}

#[test]
fn hard_link_to_a_symbolic_link_is_not_followed() {
    let (outside, result) = unpack(&[&[symlink("s", "../precious"), hard_link("h", "s"), file("h", "evil")]]);

    result.unwrap();
    assert!(fs::symlink_metadata(outside.path().join(ROOT).join("s")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(outside.path().join(ROOT).join("h")).unwrap().is_file());
}

#[test]
fn link_inside_the_root_is_followed_as_the_container_would() {
    let (outside, result) = unpack(&[
        // A directory that no host has: see ROOT.
        &[directory("no-host/lib"), symlink("lib", "no-host/lib"), symlink("lib64", "/no-host/lib")],
        &[file("lib/a", "a"), file("lib64/b", "b"), hard_link("c", "lib/a")],
    ]);

    result.unwrap();
    assert_eq!(
        listing(&outside),
        ["c", "lib", "lib64", "no-host", "no-host/lib", "no-host/lib/a", "no-host/lib/b"]
    );
}

#[test]
fn whiteout_hides_what_lower_layers_have() {
    let (outside, result) = unpack(&[
        &[file("gone", ""), file("dir/a", ""), file("kept", "")],
        &[file(".wh.gone", ""), file(".wh.dir", ""), file(".wh.never-was", ""), file("no/.wh.where", "")],
    ]);

    result.unwrap();
    assert_eq!(listing(&outside), ["kept"]);
}

#[test]
fn whiteout_spares_its_own_layer_whatever_the_order() {
    let lower: &[Item] = &[file("d/old", ""), file("f", "old")];
    let before: &[Item] = &[file(".wh.d", ""), file(".wh.f", ""), file("d/new", ""), file("f", "new")];
    let after: &[Item] = &[file("d/new", ""), file("f", "new"), file(".wh.d", ""), file(".wh.f", "")];
    for upper in [before, after] {
        let (outside, result) = unpack(&[lower, upper]);
        result.unwrap();
        assert_eq!(listing(&outside), ["d", "d/new", "f"]);
        assert_eq!(fs::read(outside.path().join(ROOT).join("f")).unwrap(), b"new");
    }
}

#[test]
fn opaque_marker_hides_lower_contents_only() {
    let lower: &[Item] = &[file("d/old", ""), file("d/sub/old", ""), file("d/both/old", "")];
    let upper: &[Item] = &[file("d/both/new", ""), file("d/.wh..wh..opq", ""), file("d/late", "")];

    let (outside, result) = unpack(&[lower, upper]);

    result.unwrap();
    assert_eq!(listing(&outside), ["d", "d/both", "d/both/new", "d/late"]);
}

#[test]
fn whiteout_of_a_parent_directory_is_refused() {
    for name in [".wh...", ".wh..", ".wh.", "a/.wh..."] {
        let (_outside, result) = unpack(&[&[file("a/b", "")], &[file(name, "")]]);
        assert!(matches!(result, Err(ImageError::Layer(2, LayerError::Refused(..)))), "{name}: {result:?}");
    }
}

#[test]
fn whiteout_through_a_link_removes_nothing_outside() {
    let (outside, result) = unpack(&[
        &[symlink("out", ".."), symlink("up", "../..")],
        &[file("out/.wh.precious", ""), file("up/.wh.precious", ""), file("up/.wh.two", "")],
    ]);

    result.unwrap();
    assert_eq!(listing(&outside), ["out", "up"]);
}

#[test]
fn opaque_marker_behind_a_link_clears_only_the_root() {
    let (outside, result) =
        unpack(&[&[symlink("out", ".."), file("x", "")], &[file("out/.wh..wh..opq", "")]]);

    result.unwrap();
    assert_eq!(listing(&outside), Vec::<String>::new());
}

#[test]
fn file_replaces_a_directory_but_is_no_parent() {
    let (outside, result) =
        unpack(&[&[file("a/deep/er", ""), file("b", "")], &[file("a", ""), file("b/c", "")]]);

    // A file in the place of a parent is what no builder writes without a whiteout.
    assert!(matches!(result, Err(ImageError::Layer(2, LayerError::Write(..)))), "{result:?}");
    assert_eq!(listing(&outside), ["a", "b"]);
}

#[test]
fn damaged_blob_is_told_by_its_digest() {
    let layout = TempDir::new().unwrap();
    let plain = layer(&[file("hello", "hello")]);
    let blob = gzip(&plain);
    write_layout(layout.path(), std::slice::from_ref(&blob), &[digest(&plain)]);
    let path = layout.path().join("blobs/sha256").join(&digest(&blob)[7..]);
    let mut bytes = blob;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();

    let root = TempDir::new().unwrap();
    let result = Image::open(layout.path(), layout.path()).unwrap().unpack(root.path(), &GO);

    assert!(matches!(result, Err(ImageError::Digest(_))), "{result:?}");
}

#[test]
fn layer_that_is_not_the_one_the_configuration_names_is_refused() {
    let layout = TempDir::new().unwrap();
    write_layout(layout.path(), &[layer(&[file("a", "")])], &[digest(b"another")]);

    let root = TempDir::new().unwrap();
    let result = Image::open(layout.path(), layout.path()).unwrap().unpack(root.path(), &GO);

    assert!(matches!(result, Err(ImageError::Digest(_))), "{result:?}");
}

#[test]
fn digest_that_is_a_path_is_refused() {
    let layout = TempDir::new().unwrap();
    write_index(layout.path(), &[json!({ "digest": "sha256:../../../../etc/passwd" })]);

    let result = Image::open(layout.path(), layout.path());

    assert!(matches!(result, Err(ImageError::Unsupported(_))), "{result:?}");
}

#[test]
fn index_of_many_platforms_gives_this_machines_image() {
    let layout = TempDir::new().unwrap();
    let plain = layer(&[file("hello", "hello")]);
    let mut ours = write_layout(layout.path(), std::slice::from_ref(&plain), &[digest(&plain)]);
    ours["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let arm = json!({ "digest": "sha256:none", "platform": { "os": "linux", "architecture": "arm64" } });
    let attestation = json!({
        "digest": "sha256:none", "platform": { "os": "unknown", "architecture": "unknown" },
    });
    let inner = json!({ "manifests": [arm.clone(), ours, attestation] });
    let mut inner = put(layout.path(), &serde_json::to_vec(&inner).unwrap());
    inner["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
    write_index(layout.path(), &[inner]);
    Image::open(layout.path(), layout.path()).unwrap();

    write_index(layout.path(), &[arm]);
    let result = Image::open(layout.path(), layout.path());
    assert!(matches!(&result, Err(ImageError::Platform(which)) if which == "linux/arm64"), "{result:?}");
}

#[test]
fn several_images_are_an_error_that_names_them() {
    let layout = TempDir::new().unwrap();
    let manifest = |digest: &str, name: &str| json!({ "digest": digest, "annotations": { REF_NAME: name } });
    write_index(layout.path(), &[manifest("sha256:1", "one"), manifest("sha256:2", "two")]);

    let result = Image::open(layout.path(), layout.path());

    assert!(matches!(&result, Err(ImageError::Several(2, names)) if names == "one, two"), "{result:?}");
}

#[test]
fn the_error_that_names_images_is_short_whatever_they_are_called() {
    let layout = TempDir::new().unwrap();
    let manifest = |number: usize| json!({ "digest": format!("sha256:{number}"), "annotations": { REF_NAME: "x".repeat(10_000) } });
    write_index(layout.path(), &(0..100).map(manifest).collect::<Vec<_>>());

    let result = Image::open(layout.path(), layout.path());

    let Err(ImageError::Several(100, names)) = result else { panic!("{result:?}") };
    assert!(names.starts_with("xxx") && names.ends_with("…, …") && names.chars().count() < 3000, "{names}");
}

#[test]
fn a_digest_that_is_none_is_refused_before_it_is_kept() {
    let layout = TempDir::new().unwrap();
    let long = json!({ "digest": format!("sha256:{}", "0".repeat(10_000)) });
    write_index(layout.path(), &[long.clone(), long]);

    let result = Image::open(layout.path(), layout.path());

    assert!(matches!(&result, Err(ImageError::Unsupported(text)) if text.len() < 300), "{result:?}");
}

#[test]
fn index_that_contains_itself_ends_in_an_error() {
    // A digest can't contain itself; a document chain that is too long is the nearest a hostile image gets.
    let layout = TempDir::new().unwrap();
    let mut index = json!({ "manifests": [] });
    for _ in 0..8 {
        let mut descriptor = put(layout.path(), &serde_json::to_vec(&index).unwrap());
        descriptor["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
        index = json!({ "manifests": [descriptor] });
    }
    write_index(layout.path(), index["manifests"].as_array().unwrap());

    let result = Image::open(layout.path(), layout.path());

    assert!(matches!(result, Err(ImageError::Unsupported(_))), "{result:?}");
}

#[test]
fn what_is_no_image_is_named() {
    let directory = TempDir::new().unwrap();
    let result = Image::open(directory.path(), directory.path());
    assert!(matches!(result, Err(ImageError::Unknown)), "{result:?}");

    let text = directory.path().join("text");
    fs::write(&text, "not an archive, whatever its length may be. ".repeat(50)).unwrap();
    let result = Image::open(&text, directory.path());
    assert!(matches!(result, Err(ImageError::Unknown)), "{result:?}");

    for path in [directory.path().join("missing"), "/dev/null".into()] {
        let result = Image::open(&path, directory.path());
        assert!(matches!(result, Err(ImageError::Open(_))), "{result:?}");
    }
}

#[test]
fn unpacking_stops_on_request() {
    let (_layout, image) = image(&[&[file("a", "")]]);
    let root = TempDir::new().unwrap();

    let result = image.unpack(root.path(), &AtomicBool::new(true));

    assert!(result.is_err());
    assert!(fs::read_dir(root.path()).unwrap().next().is_none());
}

#[test]
fn zstd_layer_is_refused_with_the_way_out() {
    let layout = TempDir::new().unwrap();
    let blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0];
    write_layout(layout.path(), std::slice::from_ref(&blob), &[digest(&blob)]);

    let root = TempDir::new().unwrap();
    let error = Image::open(layout.path(), layout.path()).unwrap().unpack(root.path(), &GO).unwrap_err();

    assert!(error.to_string().contains("skopeo copy"), "{error}");
}

#[test]
fn tree_reads_as_if_it_were_the_root() {
    let outside = TempDir::new().unwrap();
    let root = outside.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(outside.path().join("passwd"), "host").unwrap();
    fs::write(root.join("passwd"), "guest").unwrap();
    std::os::unix::fs::symlink("../../passwd", root.join("etc/passwd")).unwrap();

    let tree = Tree::open(&root).unwrap();

    assert_eq!(tree.read(Path::new("/etc/passwd"), 100).unwrap(), b"guest");
    assert!(tree.read(Path::new("/etc/passwd"), 4).is_err());
}
