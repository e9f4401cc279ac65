//! POSIX access lists, as the kernel passes them in `system.posix_acl_*`.
//!
//! They are kept, so that programs which copy them succeed and find them again. The kernel decides by the mode alone
//! here: what a list gives to users and groups by name, it does not get them. The mode gives nothing that the list denies.

use super::PublishError;

/// The list that says who may do what.
pub(super) const ACCESS: &str = "system.posix_acl_access";
/// The list of a directory for what is made in it. Kept, and not handed down.
pub(super) const DEFAULT: &str = "system.posix_acl_default";

/// POSIX_ACL_XATTR_VERSION of the kernel.
const VERSION: u32 = 2;
/// Bytes of an entry: tag, permissions, id.
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One entry; the bytes of its id are as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: [u8; 4],
}

/// An access list that has all that one needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Reads the value of an attribute.
    pub(super) fn decode(value: &[u8]) -> Result<Self, PublishError> {
        let malformed = PublishError::Invalid("not an access list");
        let Some((version, rest)) = value.split_first_chunk::<4>() else { return Err(malformed) };
        if u32::from_le_bytes(*version) != VERSION || rest.len() % ENTRY != 0 {
            return Err(malformed);
        }
        let entries = rest.chunks_exact(ENTRY).map(|entry| Entry {
            tag: u16::from_le_bytes([entry[0], entry[1]]),
            permissions: u16::from_le_bytes([entry[2], entry[3]]) & 0o7,
            id: [entry[4], entry[5], entry[6], entry[7]],
        });
        let acl = Self(entries.collect());
        let count = |tag| acl.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP) > 0;
        let known = USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER;
        let whole = [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
            && count(MASK) <= 1
            && (!named || count(MASK) == 1)
            && acl
                .0
                .iter()
                .all(|entry| entry.tag & known == entry.tag && entry.tag.count_ones() == 1);
        if whole { Ok(acl) } else { Err(malformed) }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend(entry.tag.to_le_bytes());
            value.extend(entry.permissions.to_le_bytes());
            value.extend(entry.id);
        }
        value
    }

    /// Returns whether it says more than a mode can.
    pub(super) fn is_extended(&self) -> bool {
        self.0.len() > 3
    }

    fn permissions(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.permissions))
    }

    /// The permission bits that give no more than the list.
    pub(super) fn mode(&self) -> u32 {
        let of = |tag| self.permissions(tag).unwrap_or(0);
        let group = of(GROUP_OBJ) & self.permissions(MASK).unwrap_or(0o7);
        of(USER_OBJ) << 6 | group << 3 | of(OTHER)
    }

    /// Follows a chmod(2): the group's bits are those of the mask, where there is one.
    pub(super) fn chmod(&mut self, mode: u32) {
        let group = if self.permissions(MASK).is_some() { MASK } else { GROUP_OBJ };
        let bits = |shift: u32| u16::try_from(mode >> shift & 0o7).unwrap_or(0);
        for (tag, permissions) in [(USER_OBJ, bits(6)), (group, bits(3)), (OTHER, bits(0))] {
            for entry in self.0.iter_mut().filter(|entry| entry.tag == tag) {
                entry.permissions = permissions;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const NONE: u32 = u32::MAX;
    /// As `setfacl -m u:1:rw` makes it of mode 0640, with a group that may do nothing.
    const EXTENDED: [(u16, u16, u32); 5] = [
        (USER_OBJ, 6, NONE),
        (USER, 6, 1),
        (GROUP_OBJ, 0, NONE),
        (MASK, 6, NONE),
        (OTHER, 0, NONE),
    ];

    #[test]
    fn a_list_comes_back_as_it_was_and_its_mode_gives_no_more() {
        let bytes = value(&EXTENDED);
        let acl = Acl::decode(&bytes).unwrap();
        assert!(acl.is_extended());
        assert_eq!(acl.encode(), bytes);
        assert_eq!(acl.mode(), 0o600, "the mask is no permission of the owning group");
        let plain =
            Acl::decode(&value(&[(USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 1, NONE)]));
        let plain = plain.unwrap();
        assert_eq!((plain.is_extended(), plain.mode()), (false, 0o751));
    }

    #[test]
    fn chmod_changes_owner_mask_and_others() {
        let mut acl = Acl::decode(&value(&EXTENDED)).unwrap();
        acl.chmod(0o100_751);
        let changed = [
            (USER_OBJ, 7, NONE),
            (USER, 6, 1),
            (GROUP_OBJ, 0, NONE),
            (MASK, 5, NONE),
            (OTHER, 1, NONE),
        ];
        assert_eq!(acl.encode(), value(&changed));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let mut cut = value(&EXTENDED);
        cut.pop();
        let mut other_version = value(&EXTENDED);
        other_version[0] = 3;
        let without_mask = value(&[EXTENDED[0], EXTENDED[1], EXTENDED[2], EXTENDED[4]]);
        let unknown = value(&[EXTENDED[0], EXTENDED[2], EXTENDED[4], (0x40, 7, NONE)]);
        let twice = value(&[EXTENDED[0], EXTENDED[0], EXTENDED[2], EXTENDED[4]]);
        for bad in [vec![], cut, other_version, without_mask, unknown, twice, value(&[])] {
            assert!(Acl::decode(&bad).is_err(), "{bad:?}");
        }
    }
}
