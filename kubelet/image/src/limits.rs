//! Named limits. Everything that comes out of an archive, a manifest or a
//! user's hand is bounded by one of these before memory or disk is spent.

/// Largest manifest or index document. Registries refuse more than 4 MiB
/// (OCI distribution spec, "Pushing Manifests").
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest image configuration document.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Most layers in one image. The kernel's overlay takes 500
/// (`OVL_MAX_STACK`, fs/overlayfs/params.c); the classic mount path must fit
/// one page (see [`crate::overlay`]).
pub const MAX_LAYERS: usize = 256;
/// Most images taken from one archive or layout.
pub const MAX_IMAGES_PER_IMPORT: usize = 64;
/// Deepest nesting of indexes.
pub const MAX_INDEX_DEPTH: usize = 4;
/// Most files in an image archive (the outer one, not a layer).
pub const MAX_ARCHIVE_MEMBERS: usize = 16_384;
/// Most entries in one layer.
pub const MAX_LAYER_ENTRIES: u64 = 4_000_000;
/// Longest path in a layer (`PATH_MAX` less the final NUL).
pub const MAX_PATH_BYTES: usize = 4095;
/// Longest single name (`NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;
/// Largest pax header or GNU long name record. It holds paths, xattrs and
/// sparse maps, so a few maximal xattrs fit.
pub const MAX_TAR_META_BYTES: u64 = 1 << 20;
/// Largest single xattr value (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE_BYTES: usize = 65_536;
/// Most xattrs on one entry.
pub const MAX_XATTRS_PER_ENTRY: usize = 64;
/// Most data segments in one sparse file.
pub const MAX_SPARSE_SEGMENTS: usize = 65_536;
/// Largest logical size of one file (ext4's limit with 4 KiB blocks).
pub const MAX_FILE_BYTES: u64 = 16 << 40;
/// Memory for the directory times that are set at the end of a layer.
pub const MAX_DIR_TIMES_BYTES: usize = 128 << 20;
/// zstd window: 2^27 = 128 MiB, the decoder's own default ceiling.
pub const MAX_ZSTD_WINDOW_LOG2: u32 = 27;
/// Default for the decompressed bytes that one import may write to the disk.
pub const DEFAULT_MAX_UNPACKED_BYTES: u64 = 64 << 30;
/// Largest reference table.
pub const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Largest `/etc/passwd` or `/etc/group` read from an image.
pub const MAX_PASSWD_BYTES: u64 = 4 << 20;
/// Most supplementary groups taken from `/etc/group` (`NGROUPS_MAX`).
pub const MAX_GROUPS: usize = 65_536;
/// Device nodes whose paths are recorded per layer; all are counted.
pub const MAX_RECORDED_DEVICES: usize = 256;

/// One pipeline buffer.
pub(crate) const PIPE_CHUNK_BYTES: usize = 256 << 10;
/// Buffers in flight between the decompressing and the writing thread.
pub(crate) const PIPE_CHUNKS: usize = 8;
/// Bytes of a blob after which the kernel is asked to begin to write them.
pub(crate) const WRITE_BEHIND_BYTES: u64 = 8 << 20;
/// Up to this many files a commit syncs one by one; the trees of more are left
/// to the kernel (see [`crate::Store::flush`]).
pub(crate) const SYNC_EACH_MAX_FILES: usize = 64;
/// Layers of an archive that are taken in at a time; each takes two threads.
pub(crate) const MAX_PARALLEL_LAYERS: usize = 4;
/// Directory levels held open while a tree is removed.
pub(crate) const REMOVE_OPEN_LEVELS: usize = 64;
