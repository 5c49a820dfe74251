//! ImageService.ImageFsInfo

use std::time::UNIX_EPOCH;

use holdfast_cri_api::v1;

use crate::Services;

/// Both lists name one place: writable layers lie on the same file system as the images, and two mount points would
/// tell kubelet that they do not.
pub fn call(services: &Services) -> v1::ImageFsInfoResponse {
    let info = services.images.fs_info();
    let since = info.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let usage = v1::FilesystemUsage {
        timestamp: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: info.path.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(v1::UInt64Value {
            value: info.used_bytes,
        }),
        inodes_used: Some(v1::UInt64Value {
            value: info.used_inodes,
        }),
    };
    v1::ImageFsInfoResponse {
        image_filesystems: vec![usage.clone()],
        container_filesystems: vec![usage],
    }
}
