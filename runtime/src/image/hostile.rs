//! The body of the property test and the fuzz target.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use monohull_vmm::virtio::hostile::Input;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use archive::layer;

mod archive;

/// Where images are unpacked, in a fresh directory. As whoever runs this may be root, all links and absolute names lead at
/// most to that directory even where the code under test is broken, never to "/".
const ROOT: &str = "one/two/root";
/// What lies around it, and is longer than anything that an image of this test has in a file.
const PRECIOUS: [u8; 300] = [b'p'; 300];
/// Longest error, in bytes: a line that names a file and a reason.
const LONGEST: usize = 8192;

/// Files of an image by their names.
#[derive(Default)]
struct Files(Vec<(String, Vec<u8>)>);

/// Opens and unpacks the image that `bytes` say: any bytes as an archive, or a layout or an archive of `docker save` in which
/// each layer and document is what it should be, or nearly. Nothing outside of the directory it is unpacked into is read or
/// changed, and an error is one line.
pub(crate) fn run(bytes: &[u8]) {
    let outside = TempDir::new().unwrap();
    let outside = outside.path();
    let around = [outside.to_owned(), outside.join("one"), outside.join("one/two")];
    fs::create_dir_all(outside.join(ROOT)).unwrap();
    around.iter().for_each(|directory| fs::write(directory.join("precious"), PRECIOUS).unwrap());
    let scratch = TempDir::new().unwrap();
    let mut input = Input::new(bytes);
    if input.u8().is_multiple_of(8) {
        any_archive(&input.take(), input.rest(), scratch.path());
    } else {
        let made = made(&mut input, outside, scratch.path());
        if let Some(image) = checked(Image::open(&made, scratch.path())) {
            checked(image.unpack(&outside.join(ROOT), &AtomicBool::new(false)));
        }
    }
    for directory in &around {
        let precious = directory.join("precious");
        assert!(fs::read(&precious).unwrap() == PRECIOUS, "what is outside has changed");
        assert_eq!(fs::metadata(&precious).unwrap().nlink(), 1, "what is outside was linked to");
        assert_eq!(fs::read_dir(directory).unwrap().count(), 2, "something was written beside the root");
    }
    let tree = Tree::open(&outside.join(ROOT)).unwrap();
    for name in ["a", "a/b", "precious", "a/precious", "b/c", "c"] {
        let read = tree.read(Path::new(name), PRECIOUS.len() as u64).unwrap_or_default();
        assert!(read != PRECIOUS, "{name} leads out of the root");
    }
}

/// Opens bytes as an archive, and reads all that is in it. It is not unpacked: its links may lead anywhere.
fn any_archive(how: &[u8; 1], bytes: &[u8], scratch: &Path) {
    let path = scratch.join("image");
    fs::write(&path, if how[0].is_multiple_of(2) { gzip(bytes) } else { bytes.to_vec() }).unwrap();
    checked(Image::open(&path, scratch));
    let Some(store) = checked(Store::open(&path, scratch)) else { return };
    if let Store::Archive { members, .. } = &store {
        for name in members.keys().filter_map(|name| name.to_str()) {
            let mut contents = Vec::new();
            let read = store.read(name).and_then(|file| file.take(1 << 20).read_to_end(&mut contents));
            assert!(read.is_err() || contents.len() <= bytes.len(), "{name}");
        }
    }
}

/// What a call returns, if that is no error; an error is one line, and not a long one.
fn checked<T>(result: Result<T, ImageError>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => crate::text::chain(&error),
    };
    assert!(
        error.len() <= LONGEST && !error.chars().any(char::is_control),
        "{} bytes: {error:?}",
        error.len()
    );
    None
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Writes the image that `input` decides into `scratch`; its path.
fn made(input: &mut Input<'_>, outside: &Path, scratch: &Path) -> PathBuf {
    let kind = input.u8();
    let plain: Vec<Vec<u8>> = (0..1 + kind / 64 % 3).map(|_| layer(input, outside)).collect();
    let digest = |data: &[u8]| sha256(Sha256::new_with_prefix(data));
    let mut diff_ids: Vec<_> = plain.iter().map(|layer| digest(layer)).collect();
    if input.u8() == 0 {
        diff_ids.pop();
    }
    let compress = |layer: Vec<u8>| if kind.is_multiple_of(2) { gzip(&layer) } else { layer };
    let blobs: Vec<_> = plain.into_iter().map(compress).collect();
    let (os, architecture) = (word(input, "linux"), word(input, "amd64"));
    let config = document(
        &json!({ "os": os, "architecture": architecture, "rootfs": { "diff_ids": diff_ids } }),
        input,
    );
    let mut files = Files::default();
    let saved = (kind / 2).is_multiple_of(4);
    if saved {
        save(&mut files, &blobs, config, input);
    } else {
        lay_out(&mut files, &blobs, config, input);
    }
    let path = scratch.join("image");
    if saved || (kind / 8).is_multiple_of(2) {
        fs::write(&path, files.archive()).unwrap();
    } else {
        files.write(&path);
    }
    path
}

/// An image as `docker save` wrote it.
fn save(files: &mut Files, blobs: &[Vec<u8>], config: Vec<u8>, input: &mut Input<'_>) {
    let names: Vec<_> = (0..blobs.len()).map(|number| format!("{number}/layer.tar")).collect();
    let image = json!({ "Config": "config.json", "RepoTags": [word(input, "tag")], "Layers": names });
    let images = vec![image; 1 + usize::from(input.u8() / 250)];
    files.add("manifest.json", document(&json!(images), input));
    files.add("config.json", config);
    names.into_iter().zip(blobs).for_each(|(name, blob)| files.add(&name, blob.clone()));
}

/// An image as the specification of layouts says.
fn lay_out(files: &mut Files, blobs: &[Vec<u8>], config: Vec<u8>, input: &mut Input<'_>) {
    let layers: Vec<_> = blobs.iter().map(|blob| files.blob(blob.clone())).collect();
    let config = files.blob(config);
    let mut descriptor = files.blob(document(&json!({ "config": config, "layers": layers }), input));
    descriptor["platform"] = json!({ "os": word(input, "linux"), "architecture": word(input, "amd64") });
    descriptor["annotations"] = json!({ REF_NAME: word(input, "name") });
    let mut index = json!({ "manifests": [descriptor] });
    for _ in 0..input.u8() / 32 % 8 {
        let mut inner = files.blob(document(&index, input));
        inner["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
        index = json!({ "manifests": vec![inner; 1 + usize::from(input.u8() / 16)] });
    }
    files.add("oci-layout", b"{}".to_vec());
    files.add("index.json", document(&index, input));
}

/// Mostly `usual`, or a few letters of any kind, once or often.
fn word(input: &mut Input<'_>, usual: &str) -> String {
    if input.u8() < 200 {
        return usual.to_owned();
    }
    let times = usize::from(input.u8()).pow(2);
    String::from_utf8_lossy(&input.take::<3>()).repeat(times)
}

/// A document, mostly as it is.
fn document(value: &Value, input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).unwrap();
    for _ in 0..input.u8().saturating_sub(250) {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] = input.u8();
    }
    bytes
}

impl Files {
    fn add(&mut self, name: &str, data: Vec<u8>) {
        self.0.push((name.to_owned(), data));
    }

    /// Adds a blob; its descriptor.
    fn blob(&mut self, data: Vec<u8>) -> Value {
        let digest = sha256(Sha256::new_with_prefix(&data));
        self.add(&format!("blobs/sha256/{}", &digest[7..]), data);
        json!({ "digest": digest })
    }

    fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, data.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn write(&self, directory: &Path) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        self.0.iter().for_each(|(name, data)| fs::write(directory.join(name), data).unwrap());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_image_harms_what_is_around_it(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            super::run(&bytes);
        }
    }
}
