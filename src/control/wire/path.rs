//! A path or name as text, or as a list of bytes where it is none.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStringExt,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes(Vec<u8>),
}

pub(in crate::control::wire) fn serialize<S: Serializer>(
    path: &impl AsRef<OsStr>,
    to: S,
) -> Result<S::Ok, S::Error> {
    let path = path.as_ref();
    match path.to_str() {
        Some(text) => text.serialize(to),
        None => path.as_encoded_bytes().serialize(to),
    }
}

pub(in crate::control::wire) fn deserialize<'de, D: Deserializer<'de>, T: From<OsString>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(T::from(match Written::deserialize(from)? {
        Written::Text(text) => text.into(),
        Written::Bytes(bytes) => OsString::from_vec(bytes),
    }))
}

/// The same for what may be missing.
macro_rules! optional {
    ($name:ident, $type:ty) => {
        pub(in crate::control::wire) mod $name {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            #[derive(Serialize, Deserialize)]
            struct Written(#[serde(with = "super")] $type);

            pub(in crate::control::wire) fn serialize<S: Serializer>(
                path: &Option<$type>,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                path.clone().map(Written).serialize(to)
            }

            pub(in crate::control::wire) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<Option<$type>, D::Error> {
                Ok(Option::<Written>::deserialize(from)?.map(|written| written.0))
            }
        }
    };
}

optional!(optional_path, std::path::PathBuf);
optional!(optional_name, std::ffi::OsString);
