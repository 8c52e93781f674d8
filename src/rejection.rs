//! Why a sample could not be processed: comes out of reading and decoding, goes into the `rejection` column.
//!
//! A rejection is a function of the sample's bytes and of the limits in force, never of the network, the disk or
//! the clock: a second attempt rejects the same samples for the same reasons.

use std::fmt;

/// The reason for which one sample was left out. Its text is stable: users filter and count by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rejection {
    /// The shard ends or breaks inside this sample; nothing after it could be read.
    ShardBroken,
    /// A key that was seen earlier in the same shard, not adjacent to this sample.
    DuplicateKey,
    /// More members under one key than the limit.
    TooManyMembers,
    /// A member larger than the limit.
    MemberTooLarge,
    /// No member with an image extension.
    MissingImage,
    /// No caption member.
    MissingCaption,
    /// No label, in a pool of labelled images.
    MissingLabel,
    /// The image member has no bytes.
    EmptyImage,
    /// The caption is not UTF-8.
    CaptionNotUtf8,
    /// The caption has no character but white space.
    EmptyCaption,
    /// The caption is longer than the limit.
    CaptionTooLong,
    /// The label is no whole number from 0 to 2³² − 1.
    InvalidLabel,
    /// The JSON member is not valid JSON, or not UTF-8.
    InvalidJson,
    /// The image's width times height is over the limit.
    ImageTooLarge,
    /// An AVIF, which is not decoded here.
    UnsupportedAvif,
    /// A JPEG 2000, which is not decoded here.
    UnsupportedJpeg2000,
    /// The image could not be decoded to its end.
    UndecodableImage,
    /// Outside `read.bounds`.
    OutOfBounds,
    /// A model gave an embedding with NaN, infinity or length 0 for this sample.
    DegenerateEmbedding,
    /// A classifier has no class of this number.
    LabelOutOfRange,
}

impl Rejection {
    /// Every reason, in the order in which a sample can meet them.
    pub const ALL: [Rejection; 20] = [
        Rejection::ShardBroken,
        Rejection::DuplicateKey,
        Rejection::TooManyMembers,
        Rejection::MemberTooLarge,
        Rejection::MissingImage,
        Rejection::MissingCaption,
        Rejection::MissingLabel,
        Rejection::EmptyImage,
        Rejection::CaptionNotUtf8,
        Rejection::EmptyCaption,
        Rejection::CaptionTooLong,
        Rejection::InvalidLabel,
        Rejection::InvalidJson,
        Rejection::ImageTooLarge,
        Rejection::UnsupportedAvif,
        Rejection::UnsupportedJpeg2000,
        Rejection::UndecodableImage,
        Rejection::OutOfBounds,
        Rejection::DegenerateEmbedding,
        Rejection::LabelOutOfRange,
    ];

    /// The stable short text that stands in the `rejection` column.
    pub fn text(self) -> &'static str {
        match self {
            Rejection::ShardBroken => "shard_broken",
            Rejection::DuplicateKey => "duplicate_key",
            Rejection::TooManyMembers => "too_many_members",
            Rejection::MemberTooLarge => "member_too_large",
            Rejection::MissingImage => "missing_image",
            Rejection::MissingCaption => "missing_caption",
            Rejection::MissingLabel => "missing_label",
            Rejection::EmptyImage => "empty_image",
            Rejection::CaptionNotUtf8 => "caption_not_utf8",
            Rejection::EmptyCaption => "empty_caption",
            Rejection::CaptionTooLong => "caption_too_long",
            Rejection::InvalidLabel => "invalid_label",
            Rejection::InvalidJson => "invalid_json",
            Rejection::ImageTooLarge => "image_too_large",
            Rejection::UnsupportedAvif => "unsupported_avif",
            Rejection::UnsupportedJpeg2000 => "unsupported_jpeg_2000",
            Rejection::UndecodableImage => "undecodable_image",
            Rejection::OutOfBounds => "out_of_bounds",
            Rejection::DegenerateEmbedding => "degenerate_embedding",
            Rejection::LabelOutOfRange => "label_out_of_range",
        }
    }

    /// The reason with this text, if there is one.
    pub fn from_text(text: &str) -> Option<Rejection> {
        Rejection::ALL.into_iter().find(|rejection| rejection.text() == text)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Rejection {
    /// A member is missing or could not be read: what img2dataset counts as not downloaded.
    pub fn is_unreadable_member(self) -> bool {
        matches!(
            self,
            Rejection::ShardBroken
                | Rejection::MissingImage
                | Rejection::MissingCaption
                | Rejection::MissingLabel
                | Rejection::EmptyImage
                | Rejection::MemberTooLarge
        )
    }

    /// The image could not be made into pixels: what img2dataset counts as not resized.
    pub fn is_undecodable_image(self) -> bool {
        matches!(
            self,
            Rejection::ImageTooLarge
                | Rejection::UnsupportedAvif
                | Rejection::UnsupportedJpeg2000
                | Rejection::UndecodableImage
        )
    }
}
