//! The directory store, in a real directory.

use crate::world::Directory;

crate::suite!(Directory);
