//! The members of one shard in, its samples out: adjacent members with the same key are one sample.

use std::collections::HashSet;
use std::io::{self, Read};

use serde_json::Value;
use webdataset::core::utils::{base_plus_ext, is_shard_metadata};

use super::label::{self, CLS_BYTES_MAX, LabelSource, SampleKind};
use super::limits::Limits;
use super::member::{Member, MemberError, Members};
use super::sidecar::{Sidecar, SidecarRow};
use crate::rejection::Rejection;

/// Extensions of members that are taken as the image: those of the formats that can be decoded. What the
/// bytes are is decided by the bytes.
pub(super) const IMAGE_EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// One sample of a shard, or why there is none in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadSample {
    Sample(Sample),
    Rejected(RejectedSample),
}

impl ReadSample {
    /// Bytes of the image, 0 where there is none.
    pub fn image_size(&self) -> u64 {
        match self {
            ReadSample::Sample(sample) => sample.image_size,
            ReadSample::Rejected(rejected) => rejected.image_size,
        }
    }
}

/// An image and what belongs to it, as the shard holds them; the image is not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Member path up to the first dot of its file name; unique among the accepted samples of the shard.
    pub key: String,
    /// Position among all samples of the shard, rejected ones included.
    pub sample_idx: u64,
    pub image: Vec<u8>,
    /// Lower case, without the dot.
    pub image_extension: String,
    /// Where the image's bytes begin in the stored shard; none if the shard is compressed.
    pub image_offset: Option<u64>,
    /// Bytes of the image.
    pub image_size: u64,
    /// Always there in pools of images and captions.
    pub caption: Option<String>,
    /// The number of its class, in pools of labelled images.
    pub label: Option<u32>,
    /// The JSON member's text, valid JSON.
    pub json: Option<String>,
    /// The field `uid` of the JSON member, if it is a string.
    pub uid: Option<String>,
}

/// A sample that could not be read, with what was readable of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedSample {
    /// Empty if the shard broke outside of any sample.
    pub key: String,
    pub sample_idx: u64,
    pub rejection: Rejection,
    pub image_offset: Option<u64>,
    pub image_size: u64,
    pub caption: Option<String>,
    pub label: Option<u32>,
    pub json: Option<String>,
}

/// The samples of one shard, in its order.
///
/// Only regular members count: directories, links, devices and sparse files are passed over, and so are names
/// without a dot, names that begin with one, `__name__` metadata, and what archivers leave behind
/// (`__MACOSX/`, `PaxHeaders`). Members passed over do not separate the members around them. An extension
/// that comes twice begins a new group, which is then a [`Rejection::DuplicateKey`].
///
/// The caption is the member `txt`, else `caption`, else the JSON's string field `caption`. Of several images
/// the first is taken. Where a caption is not asked for, one that cannot be used is as good as none.
///
/// # Errors
///
/// An item is an error if the reader failed; the iterator then ends. Bytes that are no tar, or cut short, are
/// one [`Rejection::ShardBroken`] instead, and the end too.
///
/// # Memory
///
/// One sample's image, caption and JSON, within [`Limits`], and 16 bytes for each key seen.
pub struct Samples<R: Read> {
    members: Members<R>,
    limits: Limits,
    kind: SampleKind,
    is_plain: bool,
    sidecar: Sidecar,
    /// The member that begins the next sample: its header is read, its data are not.
    next_member: Option<(String, String, Member)>,
    keys_seen: HashSet<[u8; 16]>,
    n_samples: u64,
    is_done: bool,
}

/// A sample whose members are still coming.
pub(super) struct Group {
    pub key: String,
    extensions: Vec<String>,
    n_members: u64,
    /// The first reason met, in the order of [`Rejection::ALL`].
    rejection: Option<Rejection>,
    pub image: Option<GroupImage>,
    pub txt: Option<Result<Vec<u8>, Rejection>>,
    caption: Option<Result<Vec<u8>, Rejection>>,
    pub cls: Option<Vec<u8>>,
    pub json: Option<Vec<u8>>,
    /// From the file beside the tar.
    other_caption: Option<String>,
    other_uid: Option<String>,
}

#[derive(Default)]
pub(super) struct GroupImage {
    pub bytes: Vec<u8>,
    pub extension: String,
    pub offset: Option<u64>,
    pub size: u64,
}

impl<R: Read> Samples<R> {
    /// Reads the samples of a tar, each with a caption. `is_plain` says that the reader gives the stored shard's own bytes, so
    /// that offsets in it mean something (see [`is_plain`](super::is_plain)).
    pub fn new(reader: R, limits: Limits, is_plain: bool) -> Samples<R> {
        Samples {
            members: Members::new(reader),
            limits,
            kind: SampleKind::default(),
            is_plain,
            sidecar: Sidecar::default(),
            next_member: None,
            keys_seen: HashSet::new(),
            n_samples: 0,
            is_done: false,
        }
    }

    /// Reads samples of another kind.
    pub fn of_kind(self, kind: SampleKind) -> Samples<R> {
        Samples { kind, ..self }
    }

    /// Takes from the file beside the tar what the tar does not say: the JSON and the caption of samples that have none,
    /// and the uid of those whose JSON has none.
    pub fn with_sidecar(self, sidecar: Sidecar) -> Samples<R> {
        Samples { sidecar, ..self }
    }

    /// The next member that belongs to a sample, with its key and its extension in lower case.
    fn named_member(&mut self) -> Result<Option<(String, String, Member)>, MemberError> {
        while let Some(member) = self.members.next()? {
            if let Some((key, extension)) = sample_name(&member.path) {
                return Ok(Some((key.to_owned(), extension.to_lowercase(), member)));
            }
        }
        Ok(None)
    }

    fn next_group(&mut self, group: &mut Option<Group>) -> Result<(), MemberError> {
        loop {
            let Some((key, extension, member)) = (match self.next_member.take() {
                Some(named) => Some(named),
                None => self.named_member()?,
            }) else {
                return Ok(());
            };
            let current = group.get_or_insert_with(|| Group::new(key.clone()));
            if current.key != key || current.extensions.contains(&extension) {
                self.next_member = Some((key, extension, member));
                return Ok(());
            }
            let taken = current.take(&mut self.members, &member, extension, &self.limits);
            if !self.is_plain
                && let Some(image) = &mut current.image
            {
                image.offset = None;
            }
            taken?;
        }
    }
}

impl<R: Read> Iterator for Samples<R> {
    type Item = io::Result<ReadSample>;

    fn next(&mut self) -> Option<io::Result<ReadSample>> {
        if self.is_done {
            return None;
        }
        let mut group = None;
        let is_broken = match self.next_group(&mut group) {
            Ok(()) => false,
            Err(MemberError::Broken) => true,
            Err(MemberError::Read(error)) => {
                self.is_done = true;
                return Some(Err(error));
            }
        };
        self.is_done = is_broken || self.next_member.is_none();
        let mut group = match group {
            Some(group) => group,
            None if is_broken => Group::new(String::new()),
            None => return None,
        };
        if is_broken {
            group.reject(Rejection::ShardBroken);
        } else if !self.keys_seen.insert(key_digest(&group.key)) {
            group.reject(Rejection::DuplicateKey);
        }
        if let Some(row) = self.sidecar.take(&group.key) {
            group.complete(row, &self.limits);
        }
        let sample_idx = self.n_samples;
        self.n_samples += 1;
        Some(Ok(group.finish(sample_idx, &self.kind, &self.limits)))
    }
}

impl Group {
    pub fn new(key: String) -> Group {
        Group {
            key,
            extensions: Vec::new(),
            n_members: 0,
            rejection: None,
            image: None,
            txt: None,
            caption: None,
            cls: None,
            json: None,
            other_caption: None,
            other_uid: None,
        }
    }

    pub fn reject(&mut self, rejection: Rejection) {
        self.rejection = Some(self.rejection.map_or(rejection, |earlier| earlier.min(rejection)));
    }

    /// Reads one member, if it is of use and within the limits.
    fn take<R: Read>(
        &mut self,
        members: &mut Members<R>,
        member: &Member,
        extension: String,
        limits: &Limits,
    ) -> Result<(), MemberError> {
        self.n_members += 1;
        if self.n_members > limits.members_per_sample_max {
            self.reject(Rejection::TooManyMembers);
            return Ok(());
        }
        if member.size > limits.member_bytes_max {
            self.reject(Rejection::MemberTooLarge);
        }
        let is_fit = member.size <= limits.member_bytes_max;
        match extension.as_str() {
            name if IMAGE_EXTENSIONS.contains(&name) && self.image.is_none() => {
                // Known before the data are read, so that a rejection can still say where the image lies.
                let image = self.image.insert(GroupImage {
                    bytes: Vec::new(),
                    extension: extension.clone(),
                    offset: Some(member.offset),
                    size: member.size,
                });
                if is_fit {
                    image.bytes = members.data()?;
                }
            }
            "txt" | "caption" if is_fit => {
                let text = if member.size > limits.caption_bytes_max {
                    Err(Rejection::CaptionTooLong)
                } else {
                    Ok(members.data()?)
                };
                *(if extension == "txt" { &mut self.txt } else { &mut self.caption }) = Some(text);
            }
            // a longer one is no number, and an empty text is none either
            "cls" if member.size > CLS_BYTES_MAX => self.cls = Some(Vec::new()),
            "cls" => self.cls = Some(members.data()?),
            "json" if member.size > limits.json_bytes_max => self.reject(Rejection::MemberTooLarge),
            "json" if is_fit => self.json = Some(members.data()?),
            _ => {}
        }
        self.extensions.push(extension);
        Ok(())
    }

    /// Why there is no image.
    fn no_image(&self) -> Rejection {
        let has = |extension: &str| self.extensions.iter().any(|own| own == extension);
        if has("avif") {
            Rejection::UnsupportedAvif
        } else if has("jp2") || has("j2k") {
            Rejection::UnsupportedJpeg2000
        } else {
            Rejection::MissingImage
        }
    }

    /// Takes what the members did not say from the file beside the tar.
    fn complete(&mut self, row: SidecarRow, limits: &Limits) {
        if self.json.is_none() {
            // the column that is the caption goes before one that happens to have the name
            if self.txt.is_none() && self.caption.is_none() {
                self.caption = row.caption.clone().map(|text| Ok(text.into_bytes()));
            }
            if row.json.len() as u64 <= limits.json_bytes_max {
                self.json = Some(row.json.into_bytes());
            }
        }
        self.other_uid = row.uid;
        self.other_caption = row.caption;
    }

    pub fn finish(mut self, sample_idx: u64, kind: &SampleKind, limits: &Limits) -> ReadSample {
        let json = self.json.take().map(parse_json);
        let caption = self.caption(json.as_ref(), limits);
        let label = match kind {
            SampleKind::ImageClass(source) => self.label(source, json.as_ref()),
            SampleKind::ImageText | SampleKind::Image | SampleKind::Text => None,
        };
        if *kind == SampleKind::Text {
            self.image = Some(GroupImage::default());
        }
        match &self.image {
            _ if *kind == SampleKind::Text => {}
            None => self.reject(self.no_image()),
            Some(image) if image.size == 0 => self.reject(Rejection::EmptyImage),
            Some(_) => {}
        }
        if matches!(kind, SampleKind::ImageText | SampleKind::Text)
            && let Err(rejection) = &caption
        {
            self.reject(*rejection);
        }
        if let Some(Err(rejection)) = &json {
            self.reject(*rejection);
        }
        let (caption, json) = (caption.ok(), json.and_then(Result::ok));
        match (self.rejection, self.image) {
            (None, Some(image)) => ReadSample::Sample(Sample {
                key: self.key,
                sample_idx,
                image: image.bytes,
                image_extension: image.extension,
                image_offset: image.offset,
                image_size: image.size,
                caption,
                label,
                uid: json.as_ref().and_then(|json| json.uid.clone()).or(self.other_uid),
                json: json.map(|json| json.text),
            }),
            (rejection, image) => ReadSample::Rejected(RejectedSample {
                key: self.key,
                sample_idx,
                rejection: rejection.expect("a sample without image was rejected above"),
                image_offset: image.as_ref().and_then(|image| image.offset),
                image_size: image.map_or(0, |image| image.size),
                caption,
                label,
                json: json.map(|json| json.text),
            }),
        }
    }

    /// The caption, or why there is none that can be used.
    fn caption(
        &mut self,
        json: Option<&Result<Json, Rejection>>,
        limits: &Limits,
    ) -> Result<String, Rejection> {
        let caption = match (self.txt.take().or(self.caption.take()), json) {
            (Some(bytes), _) => String::from_utf8(bytes?).map_err(|_| Rejection::CaptionNotUtf8)?,
            (None, Some(Ok(Json { caption: Some(caption), .. }))) => caption.clone(),
            (None, _) => self.other_caption.take().ok_or(Rejection::MissingCaption)?,
        };
        match caption {
            blank if blank.trim().is_empty() => Err(Rejection::EmptyCaption),
            long if long.len() as u64 > limits.caption_bytes_max => Err(Rejection::CaptionTooLong),
            caption => Ok(caption),
        }
    }

    /// The label; rejects the sample if it has none that can be used.
    fn label(&mut self, source: &LabelSource, json: Option<&Result<Json, Rejection>>) -> Option<u32> {
        let label = match (source, json) {
            (LabelSource::Member, _) => match self.cls.take() {
                Some(bytes) => label::of_member(&bytes),
                None => Err(Rejection::MissingLabel),
            },
            (LabelSource::JsonField(field), Some(Ok(json))) => label::of_json(&json.value, field),
            // that the JSON is broken is the reason
            (LabelSource::JsonField(_), Some(Err(_))) => return None,
            (LabelSource::JsonField(_), None) => Err(Rejection::MissingLabel),
        };
        label.map_err(|rejection| self.reject(rejection)).ok()
    }
}

struct Json {
    text: String,
    value: Value,
    uid: Option<String>,
    caption: Option<String>,
}

fn parse_json(bytes: Vec<u8>) -> Result<Json, Rejection> {
    let text = String::from_utf8(bytes).map_err(|_| Rejection::InvalidJson)?;
    let value: Value = serde_json::from_str(&text).map_err(|_| Rejection::InvalidJson)?;
    let field = |name| value.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Json { uid: field("uid"), caption: field("caption"), text, value })
}

/// Key and extension of a member, if it belongs to a sample.
pub(super) fn sample_name(path: &str) -> Option<(&str, &str)> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let is_left_behind = folder.split('/').any(|part| part == "__MACOSX" || part.starts_with("PaxHeaders"));
    if is_left_behind || is_shard_metadata(path) {
        return None;
    }
    base_plus_ext(path)
}

pub(super) fn key_digest(key: &str) -> [u8; 16] {
    let digest = blake3::hash(key.as_bytes());
    *digest.as_bytes().first_chunk().expect("a digest has 32 bytes")
}
