//! The Stream calls: what the List call of the same name would answer, in messages of bounded size, then the end.
//!
//! What is listed is taken once, at the call, so nothing comes twice; each item is translated only when its message is due.

use std::pin::Pin;

use futures::Stream;
use prost::Message;
use tonic::Status;

/// Items in one message.
pub const BATCH: usize = 256;
/// Encoded bytes in one message: far below what a client takes (16 MiB). A larger item goes alone.
const BATCH_BYTES: usize = 1 << 20;

pub type Batches<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// Streams `records`, each as `item`, packed by `message`.
pub fn stream<R, T, M>(
    records: Vec<R>,
    item: impl Fn(&R) -> T + Send + 'static,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Batches<M>
where
    R: Send + 'static,
    T: Message + 'static,
    M: 'static,
{
    let mut rest = records.into_iter();
    let mut held: Option<T> = None;
    let next = move || {
        let mut batch: Vec<T> = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH {
            let Some(one) = held.take().or_else(|| rest.next().map(|record| item(&record))) else {
                break;
            };
            bytes += one.encoded_len();
            if bytes > BATCH_BYTES && !batch.is_empty() {
                held = Some(one);
                break;
            }
            batch.push(one);
        }
        (!batch.is_empty()).then(|| Ok(message(batch)))
    };
    Box::pin(futures::stream::iter(std::iter::from_fn(next)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use holdfast_cri_api::v1;
    use proptest::prelude::*;

    /// Sizes of the messages for records of these sizes, and the ids in the order that they came.
    fn run(sizes: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let records: Vec<(usize, usize)> = sizes.iter().copied().enumerate().collect();
        let all = stream(
            records,
            |(n, size)| v1::Container {
                id: n.to_string(),
                image_ref: "x".repeat(*size),
                ..Default::default()
            },
            |containers| v1::StreamContainersResponse { containers },
        );
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let got: Vec<v1::StreamContainersResponse> = runtime
            .expect("a runtime")
            .block_on(all.map(Result::unwrap_or_default).collect());
        let lengths = got.iter().map(|one| one.containers.len()).collect();
        let ids = got.into_iter().flat_map(|one| one.containers);
        (
            lengths,
            ids.map(|one| one.id.parse().unwrap_or(usize::MAX)).collect(),
        )
    }

    #[test]
    fn by_number_and_by_size() {
        assert_eq!(run(&[]).0, Vec::<usize>::new());
        assert_eq!(run(&[1; BATCH]).0, [BATCH]);
        assert_eq!(run(&[1; 2 * BATCH + 1]).0, [BATCH, BATCH, 1]);
        assert_eq!(run(&[BATCH_BYTES, 5, 5]).0, [1, 2]);
        assert_eq!(run(&[5, 2 * BATCH_BYTES, 5]).0, [1, 1, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn each_once_in_order(sizes in prop::collection::vec(prop_oneof![9 => 0usize..50, 1 => 0..BATCH_BYTES], 0..600)) {
            let (lengths, ids) = run(&sizes);
            prop_assert!(ids.iter().copied().eq(0..sizes.len()));
            prop_assert!(lengths.iter().all(|n| (1..=BATCH).contains(n)));
        }
    }
}
