//! `holdfast images`

use anyhow::Result;
use holdfast_cri_api::v1;

use crate::args::{Format, Images};
use crate::client::{Client, told};
use crate::output::{self, Table};

pub async fn run(mut client: Client, format: Format, options: Images) -> Result<()> {
    let filter = options.image.map(|image| v1::ImageFilter {
        image: Some(v1::ImageSpec {
            image,
            ..Default::default()
        }),
    });
    let request = client.request(v1::ListImagesRequest { filter });
    let images = client
        .image
        .list_images(request)
        .await
        .map_err(told)?
        .into_inner()
        .images;
    if options.quiet {
        return output::lines(images.iter().map(|image| image.id.as_str()));
    }
    match format {
        Format::Json => output::print_list("images", "Image", &images),
        Format::Table => Ok(table(&images, options.no_trunc).print()?),
    }
}

fn table(images: &[v1::Image], whole_ids: bool) -> Table {
    let mut rows: Vec<(String, String, &v1::Image)> = Vec::new();
    for image in images {
        for tag in &image.repo_tags {
            // A port has a colon too, but no tag holds a slash.
            let (name, tag) = match tag.rsplit_once(':') {
                Some((name, tag)) if !tag.contains('/') => (name, tag),
                _ => (tag.as_str(), "<none>"),
            };
            rows.push((name.to_owned(), tag.to_owned(), image));
        }
        if image.repo_tags.is_empty() {
            let digest = image.repo_digests.first().map_or("<none>", String::as_str);
            let name = digest.split_once('@').map_or(digest, |(name, _)| name);
            rows.push((name.to_owned(), "<none>".to_owned(), image));
        }
    }
    rows.sort_by(|a, b| (&a.0, &a.1, &a.2.id).cmp(&(&b.0, &b.1, &b.2.id)));
    let mut table = Table::new(&["IMAGE", "TAG", "IMAGE ID", "SIZE", "PINNED"]);
    for (name, tag, image) in rows {
        let id = if whole_ids {
            &image.id
        } else {
            output::short_id(&image.id)
        };
        table.row([
            name,
            tag,
            id.to_owned(),
            output::size(image.size),
            if image.pinned {
                "yes".to_owned()
            } else {
                String::new()
            },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_see_it() {
        let image = |id: &str, tags: &[&str], digests: &[&str], pinned: bool| v1::Image {
            id: format!("sha256:{}", id.repeat(32)),
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            size: 4_261_550,
            pinned,
            ..Default::default()
        };
        let images = [
            image(
                "b2",
                &["localhost:5000/web:v1", "localhost:5000/web:latest"],
                &[],
                false,
            ),
            image("a1", &["docker.io/library/busybox:1.36"], &[], true),
            image("c3", &[], &["quay.io/x/y@sha256:00"], false),
            image("d4", &[], &[], false),
        ];
        assert_eq!(
            table(&images, false).render(),
            include_str!("../../tests/snapshots/images.txt")
        );
    }
}
