//! Container images without a daemon: OCI image layouts (a directory, or a tar archive of one) and archives that
//! `docker save` writes.
//!
//! Everything in an image is hostile input. Every blob is checked against its sha256 digest, and layers are unpacked
//! so that they cannot write outside the directory they are unpacked into.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;
mod layer;
mod metered;
mod store;
mod tree;

#[cfg(test)]
mod tests;

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::text::untrusted;

pub use layer::LayerError;
use store::Store;
pub use tree::Tree;

/// Most bytes of an index, manifest or configuration; registries refuse longer ones too.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Most indexes inside one another.
const MAX_NESTING: u32 = 4;
/// Most images and indexes in all of an image's indexes: official ones have about twenty.
const MAX_LISTED: usize = 1024;
/// Most characters of a name that an index gives, and most names in an error.
const MAX_NAME: usize = 128;
const MAX_NAMES: usize = 16;
/// The annotation that holds the name an image has in a layout (OCI image spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file or directory of the image can't be read, or its unpacked form not be written.
    #[error("cannot read {0:?} of the image")]
    Read(String, #[source] io::Error),
    /// The image itself can't be opened.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// Not an image at all.
    #[error("it is neither an OCI image layout nor a complete `docker save` archive")]
    Unknown,
    /// A document that isn't what the specification says.
    #[error("{0:?} of the image is not valid")]
    Parse(String, #[source] serde_json::Error),
    /// Contents that are not what the image says they are.
    #[error("{0} of the image does not match its digest: it is damaged, fetch it again")]
    Digest(String),
    /// A digest, compression or combination this version does not know.
    #[error("{0}")]
    Unsupported(String),
    /// More than one image, and no way to tell which is meant.
    #[error("it holds {0} images ({1}): export the one to run alone")]
    Several(usize, String),
    /// None for this machine.
    #[error("it is for {0}, this machine runs linux/amd64 images")]
    Platform(String),
    /// The directory to unpack into can't be opened.
    #[error("cannot open {0:?}")]
    Destination(PathBuf, #[source] io::Error),
    /// A layer that can't be unpacked.
    #[error("layer {0}")]
    Layer(usize, #[source] LayerError),
}

/// What an image says about the process to run (OCI image spec, config.md).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// First arguments of the process.
    pub entrypoint: Option<Vec<String>>,
    /// Further arguments, or all when there is no entrypoint; the user's replace them.
    pub cmd: Option<Vec<String>>,
    /// "KEY=value".
    pub env: Option<Vec<String>>,
    /// Absolute, or empty for "/".
    pub working_dir: Option<String>,
    /// "user", "uid", "user:group" or "uid:gid"; empty for root.
    pub user: Option<String>,
}

/// An image, open to be unpacked.
#[derive(Debug)]
pub struct Image {
    store: Store,
    config: ImageConfig,
    /// From the lowest up.
    layers: Vec<Layer>,
}

/// A layer's file in the store.
#[derive(Debug)]
struct Layer {
    name: String,
    /// Of the file as it is; archives of `docker save` don't say.
    digest: Option<String>,
    /// Of the tar stream in it.
    diff_id: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::HashMap<String, String>>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An element of `manifest.json` in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// The image's configuration document.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<ImageConfig>,
    rootfs: DiffIds,
}

#[derive(Deserialize)]
struct DiffIds {
    diff_ids: Vec<String>,
}

impl Image {
    /// Opens the image at `path`. `scratch` is an existing directory, used only for a compressed archive.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, ImageError> {
        let store = Store::open(path, scratch)?;
        let (config, config_digest, layers) = if store.has("oci-layout") && store.has("index.json") {
            from_layout(&store)?
        } else if matches!(store, Store::Archive { .. }) && store.has("manifest.json") {
            from_saved(&store)?
        } else {
            return Err(ImageError::Unknown);
        };
        let document: Document = document(&store, &config, config_digest.as_deref())?;
        if document.os != "linux" || document.architecture != "amd64" {
            return Err(ImageError::Platform(format!("{}/{}", document.os, document.architecture)));
        }
        let diff_ids = document.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            return Err(ImageError::Unsupported(format!(
                "the image has {} layers, its configuration names {}: it is damaged, fetch it again",
                layers.len(),
                diff_ids.len()
            )));
        }
        let layers = layers
            .into_iter()
            .zip(diff_ids)
            .map(|((name, digest), diff_id)| Layer { name, digest, diff_id })
            .collect();
        Ok(Self { store, config: document.config.unwrap_or_default(), layers })
    }

    /// What the image says about the process to run.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Unpacks all layers into `directory`, which is empty and must not be reachable by other users: the image's
    /// set-id programs and device nodes are in it. Needs root for the owners of files. What is there after an error
    /// is not to be used. Setting `stop` makes it fail soon.
    pub fn unpack(&self, directory: &Path, stop: &AtomicBool) -> Result<(), ImageError> {
        let tree = Tree::open(directory).map_err(|e| ImageError::Destination(directory.to_owned(), e))?;
        for (number, layer) in (1..).zip(&self.layers) {
            self.apply(number, layer, &tree, stop)?;
        }
        Ok(())
    }

    fn apply(&self, number: usize, layer: &Layer, tree: &Tree, stop: &AtomicBool) -> Result<(), ImageError> {
        let read = |error| ImageError::Read(layer.name.clone(), error);
        let inner = self.store.read(&layer.name).map_err(read)?;
        let mut blob = Digesting::new(Stoppable { inner, stop });
        let mut buffered = BufReader::with_capacity(64 << 10, &mut blob);
        let mut plain = match buffered.fill_buf().map_err(read)? {
            [0x1f, 0x8b, ..] => {
                Digesting::new(Box::new(flate2::bufread::MultiGzDecoder::new(&mut buffered)) as Box<dyn Read>)
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                return Err(ImageError::Unsupported(format!(
                    "layer {number} is compressed with zstd: convert the image, \
                     `skopeo copy --dest-compress-format gzip …`"
                )));
            }
            _ => Digesting::new(Box::new(&mut buffered) as Box<dyn Read>),
        };
        let applied = layer::apply(&mut plain, tree, stop);
        // A damaged layer most often fails as an archive first; the digest is the better message.
        let drained = plain.drain();
        let diff_id = plain.finish();
        blob.drain().map_err(read)?;
        let digest = blob.finish();
        if layer.digest.as_ref().is_some_and(|wanted| *wanted != digest) {
            return Err(ImageError::Digest(layer.name.clone()));
        }
        applied.map_err(|e| ImageError::Layer(number, e))?;
        drained.map_err(|e| ImageError::Layer(number, LayerError::Archive(e)))?;
        if diff_id != layer.diff_id {
            return Err(ImageError::Digest(layer.name.clone()));
        }
        Ok(())
    }
}

/// Name and digest of the configuration; names and digests of the layers.
type Parts = (String, Option<String>, Vec<(String, Option<String>)>);

fn from_layout(store: &Store) -> Result<Parts, ImageError> {
    let index: Index = document(store, "index.json", None)?;
    let mut listed = Listed::default();
    listed.collect(store, index, 0)?;
    let Listed { found, others, .. } = listed;
    let manifest = match found.as_slice() {
        [only] => only,
        [] if others.is_empty() => {
            return Err(ImageError::Unsupported("index.json of the image lists no image".into()));
        }
        [] => return Err(ImageError::Platform(some_of(others.iter()))),
        several => {
            let names = some_of(several.iter().map(|found| &found.name));
            return Err(ImageError::Several(several.len(), names));
        }
    };
    let manifest: Manifest = blob(store, &manifest.digest)?;
    let layers = manifest
        .layers
        .iter()
        .map(|layer| Ok((blob_name(&layer.digest)?, Some(layer.digest.clone()))))
        .collect::<Result<_, ImageError>>()?;
    Ok((blob_name(&manifest.config.digest)?, Some(manifest.config.digest), layers))
}

/// The first of some names, for an error.
fn some_of<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<_> = names.take(MAX_NAMES + 1).map(|name| untrusted(name, MAX_NAME)).collect();
    if names.len() > MAX_NAMES {
        names.truncate(MAX_NAMES);
        names.push("…".to_owned());
    }
    names.join(", ")
}

/// A manifest that an index lists. A thousand of them are kept: of what is said of each, only what is used, and not all of a name.
struct Found {
    digest: String,
    name: String,
}

/// What an index and the indexes it lists have listed.
#[derive(Default)]
struct Listed {
    /// The manifests for this machine, each once.
    found: Vec<Found>,
    /// The other machines that there are manifests for.
    others: Vec<String>,
    /// How many there are of everything.
    count: usize,
}

impl Listed {
    fn collect(&mut self, store: &Store, index: Index, nesting: u32) -> Result<(), ImageError> {
        if nesting > MAX_NESTING {
            return Err(ImageError::Unsupported("the image's indexes are nested too deeply".into()));
        }
        // An index costs a few bytes to list, a document to read: those of a few could list each other without end.
        self.count += index.manifests.len();
        if self.count > MAX_LISTED {
            let text = format!("the image's indexes list more than {MAX_LISTED} images");
            return Err(ImageError::Unsupported(text));
        }
        for descriptor in index.manifests {
            if let Some(Platform { os, architecture }) = &descriptor.platform
                && (os, architecture) != (&"linux".to_owned(), &"amd64".to_owned())
            {
                self.others.push(untrusted(&format!("{os}/{architecture}"), MAX_NAME));
                continue;
            }
            // No digest is as long.
            if descriptor.digest.len() > MAX_NAME {
                blob_name(&descriptor.digest)?;
            }
            if descriptor.media_type.ends_with(".index.v1+json")
                || descriptor.media_type.ends_with(".manifest.list.v2+json")
            {
                self.collect(store, blob(store, &descriptor.digest)?, nesting + 1)?;
            } else if self.found.iter().all(|other| other.digest != descriptor.digest) {
                let name = descriptor.annotations.as_ref().and_then(|all| all.get(REF_NAME));
                let name = untrusted(name.unwrap_or(&descriptor.digest), MAX_NAME);
                self.found.push(Found { digest: descriptor.digest, name });
            }
        }
        Ok(())
    }
}

fn from_saved(store: &Store) -> Result<Parts, ImageError> {
    let images: Vec<SavedImage> = document(store, "manifest.json", None)?;
    let image = match images.as_slice() {
        [only] => only,
        several => {
            let tags = several.iter().flat_map(|image| image.repo_tags.iter().flatten());
            return Err(ImageError::Several(several.len(), some_of(tags)));
        }
    };
    // Most writers name the configuration after its digest: "<hex>.json", "blobs/sha256/<hex>" or "sha256:<hex>".
    let name = image.config.rsplit(['/', ':']).next().unwrap_or_default().trim_end_matches(".json");
    let digest = format!("sha256:{name}");
    let digest = blob_name(&digest).is_ok().then_some(digest);
    let layers = image.layers.iter().map(|layer| (layer.clone(), None)).collect();
    Ok((image.config.clone(), digest, layers))
}

/// A blob's file name in a layout; only ever what a digest is, so that it can't lead elsewhere.
fn blob_name(digest: &str) -> Result<String, ImageError> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
            Ok(format!("blobs/sha256/{hex}"))
        }
        _ => {
            let digest = untrusted(digest, MAX_NAME);
            Err(ImageError::Unsupported(format!("the image has a digest that is not sha256: {digest:?}")))
        }
    }
}

fn blob<T: DeserializeOwned>(store: &Store, digest: &str) -> Result<T, ImageError> {
    document(store, &blob_name(digest)?, Some(digest))
}

/// Reads and checks a JSON document.
fn document<T: DeserializeOwned>(store: &Store, name: &str, digest: Option<&str>) -> Result<T, ImageError> {
    let read = |error| ImageError::Read(name.to_owned(), error);
    let mut bytes = Vec::new();
    store.read(name).map_err(read)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(read(io::ErrorKind::FileTooLarge.into()));
    }
    if digest.is_some_and(|digest| digest != sha256(Sha256::new_with_prefix(&bytes))) {
        return Err(ImageError::Digest(name.to_owned()));
    }
    serde_json::from_slice(&bytes).map_err(|e| ImageError::Parse(name.to_owned(), e))
}

fn sha256(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Fails instead of reading once `stop` is set.
struct Stoppable<'a, R> {
    inner: R,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped on request"));
        }
        self.inner.read(buffer)
    }
}

/// Hashes what is read through it.
struct Digesting<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Digesting<R> {
    fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads up to the end.
    fn drain(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    fn finish(self) -> String {
        sha256(self.hash)
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}
