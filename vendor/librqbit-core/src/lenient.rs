// Added to librqbit-core 9.1.0; not part of the upstream release. See CHANGES.md.

//! How the `info` dictionary of a torrent is read: by what it says, whatever else stands in it.
//!
//! Of a key that stands twice the first value counts, as in libtorrent. A value of a type that nobody expects there is
//! taken for absent. Whatever is missing then is found by `TorrentMetaV1Info::validate`.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor, value::BorrowedBytesDeserializer},
};

use crate::torrent_metainfo::{TorrentMetaV1File, TorrentMetaV1Info};

/// A value of any type.
enum Value<B> {
    Int(i64),
    Bytes(B),
    List(Vec<Value<B>>),
    File(Box<TorrentMetaV1File<B>>),
}

impl<B> Value<B> {
    fn int(self) -> Option<i64> {
        if let Self::Int(number) = self { Some(number) } else { None }
    }

    fn bytes(self) -> Option<B> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// All strings of a list.
    fn strings(self) -> Option<Vec<B>> {
        let Self::List(list) = self else { return None };
        Some(list.into_iter().filter_map(Self::bytes).collect())
    }

    /// All files of a list; none where one of its values is no file, since all behind it would be moved.
    fn files(self) -> Option<Vec<TorrentMetaV1File<B>>> {
        let Self::List(list) = self else { return None };
        let file = |value| if let Self::File(file) = value { Some(*file) } else { None };
        list.into_iter().map(file).collect()
    }
}

impl<'de, B: Deserialize<'de>> Deserialize<'de> for Value<B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyVisitor(PhantomData))
    }
}

struct AnyVisitor<B>(PhantomData<B>);

impl<'de, B: Deserialize<'de>> Visitor<'de> for AnyVisitor<B> {
    type Value = Value<B>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of bencode")
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Value::Int(number))
    }

    fn visit_borrowed_bytes<E: serde::de::Error>(self, v: &'de [u8]) -> Result<Self::Value, E> {
        B::deserialize(BorrowedBytesDeserializer::new(v)).map(Value::Bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        FileVisitor(PhantomData).visit_map(map).map(|file| Value::File(Box::new(file)))
    }
}

struct FileVisitor<B>(PhantomData<B>);

impl<'de, B: Deserialize<'de>> Visitor<'de> for FileVisitor<B> {
    type Value = TorrentMetaV1File<B>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file of a torrent")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut length, mut path) = (None, None);
        let (mut attr, mut sha1, mut symlink_path) = (None, None, None);
        while let Some(key) = map.next_key::<&[u8]>()? {
            match key {
                b"length" if length.is_none() => length = Some(map.next_value::<Value<B>>()?),
                b"path" if path.is_none() => path = Some(map.next_value::<Value<B>>()?),
                b"attr" if attr.is_none() => attr = Some(map.next_value::<Value<B>>()?),
                b"sha1" if sha1.is_none() => sha1 = Some(map.next_value::<Value<B>>()?),
                b"symlink path" if symlink_path.is_none() => {
                    symlink_path = Some(map.next_value::<Value<B>>()?);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(TorrentMetaV1File {
            // A symbolic link takes no bytes and need not say so.
            length: unsigned(length).unwrap_or_default(),
            path: path.and_then(Value::strings).unwrap_or_default(),
            attr: attr.and_then(Value::bytes),
            sha1: sha1.and_then(Value::bytes),
            symlink_path: symlink_path.and_then(Value::strings),
        })
    }
}

fn unsigned<B>(value: Option<Value<B>>) -> Option<u64> {
    value.and_then(Value::int).and_then(|number| number.try_into().ok())
}

struct InfoVisitor<B>(PhantomData<B>);

impl<'de, B: Deserialize<'de>> Visitor<'de> for InfoVisitor<B> {
    type Value = TorrentMetaV1Info<B>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the info dictionary of a torrent")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut name, mut pieces, mut piece_length) = (None, None, None);
        let (mut length, mut files, mut private) = (None, None, None);
        let (mut attr, mut sha1, mut symlink_path, mut md5sum) = (None, None, None, None);
        while let Some(key) = map.next_key::<&[u8]>()? {
            let place = match key {
                b"name" => &mut name,
                b"pieces" => &mut pieces,
                b"piece length" => &mut piece_length,
                b"length" => &mut length,
                b"files" => &mut files,
                b"private" => &mut private,
                b"attr" => &mut attr,
                b"sha1" => &mut sha1,
                b"symlink path" => &mut symlink_path,
                b"md5sum" => &mut md5sum,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            match place {
                Some(_) => drop(map.next_value::<IgnoredAny>()?),
                None => *place = Some(map.next_value::<Value<B>>()?),
            }
        }
        let pieces = match pieces.and_then(Value::bytes) {
            Some(pieces) => pieces,
            None => B::deserialize(BorrowedBytesDeserializer::new(b""))?,
        };
        let files = files.and_then(Value::files);
        let piece_length = unsigned(piece_length).and_then(|length| length.try_into().ok());
        Ok(TorrentMetaV1Info {
            name: name.and_then(Value::bytes),
            pieces,
            piece_length: piece_length.unwrap_or_default(),
            // A list of files is believed before the length of a single one, as by libtorrent.
            length: unsigned(length).filter(|_| files.is_none()),
            files,
            attr: attr.and_then(Value::bytes),
            sha1: sha1.and_then(Value::bytes),
            symlink_path: symlink_path.and_then(Value::strings),
            md5sum: md5sum.and_then(Value::bytes),
            private: private.and_then(Value::int).is_some_and(|private| private != 0),
        })
    }
}

impl<'de, B: Deserialize<'de>> Deserialize<'de> for TorrentMetaV1Info<B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InfoVisitor(PhantomData))
    }
}

impl<'de, B: Deserialize<'de>> Deserialize<'de> for TorrentMetaV1File<B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FileVisitor(PhantomData))
    }
}
