//! Images that are small and would take much of the host.

use std::os::unix::fs::FileExt;

use super::*;

/// Unpacks one layer; whatever fails is in the layer.
fn unpack_stream(stream: Vec<u8>) -> (TempDir, Result<(), String>) {
    let layout = TempDir::new().unwrap();
    write_layout(layout.path(), &[gzip(&stream)], &[digest(&stream)]);
    let root = TempDir::new().unwrap();
    let result = Image::open(layout.path(), layout.path()).unwrap().unpack(root.path(), &GO);
    (root, result.map_err(|error| crate::text::chain(&error)))
}

/// A sparse file of `data` behind a hole.
fn sparse(hole: u64, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..6].copy_from_slice(b"sparse");
    gnu.set_real_size(hole + data.len() as u64);
    gnu.sparse[0].set_offset(hole);
    gnu.sparse[0].set_length(data.len() as u64);
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(data.len() as u64);
    header.set_mode(0o600);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, data).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn a_sparse_files_holes_stay_holes() {
    let (root, result) = unpack_stream(sparse(100 << 20, b"end"));

    result.unwrap();
    let file = fs::File::open(root.path().join("sparse")).unwrap();
    let mut end = [0; 5];
    file.read_exact_at(&mut end, (100 << 20) - 2).unwrap();
    assert_eq!(&end, b"\0\0end");
    let metadata = file.metadata().unwrap();
    assert!(metadata.len() == (100 << 20) + 3 && metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
}

#[test]
fn a_sparse_file_of_exbibytes_is_refused() {
    for hole in [(1 << 30) + 1, 1 << 62] {
        let (_root, result) = unpack_stream(sparse(hole, b""));
        assert!(result.as_ref().is_err_and(|error| error.contains("1 GiB of holes")), "{result:?}");
    }
}

#[test]
fn names_and_attributes_of_megabytes_are_not_read() {
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        let long = vec![b'x'; metered::MAX_HEADERS as usize];
        let mut stream = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(long.len() as u64);
        header.set_cksum();
        stream.append(&header, long.as_slice()).unwrap();
        let mut stream = stream.into_inner().unwrap();
        stream.truncate(stream.len() - 1024);
        stream.extend(layer(&[file("f", "x")]));

        let (_root, result) = unpack_stream(stream.clone());
        assert!(result.as_ref().is_err_and(|error| error.contains("names and attributes")), "{result:?}");

        let directory = TempDir::new().unwrap();
        let path = directory.path().join("image.tar");
        fs::write(&path, stream).unwrap();
        assert!(matches!(Image::open(&path, directory.path()), Err(ImageError::Unknown)));
    }
}

#[test]
fn contents_count_for_nothing_in_what_is_said_of_the_next_entry() {
    let contents: &'static str = "x".repeat(3 * metered::MAX_HEADERS as usize).leak();
    let (root, result) =
        unpack_stream(layer(&[file("a", contents), file("b/.wh.c", contents), file("b", "b")]));

    result.unwrap();
    assert_eq!(fs::metadata(root.path().join("a")).unwrap().len(), contents.len() as u64);
    assert_eq!(fs::read(root.path().join("b")).unwrap(), b"b");
}

#[test]
fn indexes_that_list_each_other_over_and_over_end_in_an_error() {
    let layout = TempDir::new().unwrap();
    let mut index = json!({ "manifests": [] });
    for _ in 0..4 {
        let mut descriptor = put(layout.path(), &serde_json::to_vec(&index).unwrap());
        descriptor["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
        index = json!({ "manifests": vec![descriptor; 100] });
    }
    write_index(layout.path(), index["manifests"].as_array().unwrap());

    let result = Image::open(layout.path(), layout.path());

    assert!(
        matches!(&result, Err(ImageError::Unsupported(text)) if text.contains("1024 images")),
        "{result:?}"
    );
}

#[test]
fn what_an_error_quotes_of_an_image_is_one_line_of_bounded_length() {
    let layout = TempDir::new().unwrap();
    let name = format!("\n\x1b[2J{}", "x".repeat(100_000));
    let platform = json!({ "digest": "sha256:1", "platform": { "os": name, "architecture": "amd64" } });
    write_index(layout.path(), &[platform]);

    let error = crate::text::chain(&Image::open(layout.path(), layout.path()).unwrap_err());

    assert!(
        error.starts_with("it is for") && error.len() < 1100 && !error.contains(char::is_control),
        "{error}"
    );
}
