use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_sys::{memfd, scm};
use proptest::prelude::*;

use super::*;
use crate::message::{CreateContainer, Event, ExecFinished, Hello, Reply, Request};
use crate::message::{event, reply, request};

fn reply_of(id: u64, stdout: Vec<u8>) -> Envelope {
    let finished = ExecFinished {
        stdout,
        ..ExecFinished::default()
    };
    Envelope {
        id,
        reply: Some(Reply {
            body: Some(reply::Body::ExecFinished(finished)),
        }),
        ..Envelope::default()
    }
}

fn through(envelope: &Envelope, fds: &[BorrowedFd<'_>]) -> Result<(Envelope, Vec<OwnedFd>), Error> {
    let (left, right) = scm::pair().unwrap();
    send(left.as_fd(), &encode(envelope)?, fds)?;
    receive(right.as_fd(), &mut vec![0; MAX_INLINE + 1024])
}

#[test]
fn small_and_large_bodies_arrive_with_their_descriptors() {
    let file = File::open("/dev/null").unwrap();
    for size in [0, 1, MAX_INLINE - 64, MAX_INLINE, 1 << 20] {
        let sent = reply_of(7, vec![3; size]);
        let (got, fds) = through(&sent, &[file.as_fd(), file.as_fd()]).unwrap();
        assert_eq!(got, sent, "body of {size} bytes");
        assert_eq!(fds.len(), 2, "body of {size} bytes");
    }
}

#[test]
fn a_body_over_the_bound_is_refused_before_it_is_sent() {
    let error = encode(&reply_of(1, vec![0; MAX_BULK])).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn a_bulk_body_must_be_a_sealed_memfd_of_bounded_size() {
    let outer = Envelope {
        id: 1,
        bulk: true,
        ..Envelope::default()
    }
    .encode_to_vec();
    assert!(decode(&outer, vec![]).is_err(), "no descriptor");
    let device = OwnedFd::from(File::open("/dev/zero").unwrap());
    assert!(decode(&outer, vec![device]).is_err(), "not a memfd");
    let open = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    File::from(open.try_clone().unwrap())
        .write_all(&reply_of(1, vec![]).encode_to_vec())
        .unwrap();
    assert!(decode(&outer, vec![open]).is_err(), "not sealed");
    let huge = memfd::sealed("t", &vec![0; MAX_BULK + 1]).unwrap();
    assert!(decode(&outer, vec![huge]).is_err(), "too large");
    let other = memfd::sealed("t", &reply_of(2, vec![]).encode_to_vec()).unwrap();
    assert!(decode(&outer, vec![other]).is_err(), "another message's");
    let nested = memfd::sealed("t", &outer).unwrap();
    assert!(decode(&outer, vec![nested]).is_err(), "bulk in bulk");
}

#[test]
fn an_envelope_holds_exactly_one_thing() {
    assert!(decode(&[], vec![]).is_err());
    let mut two = reply_of(1, vec![]);
    two.event = Some(Event { body: None });
    assert!(decode(&two.encode_to_vec(), vec![]).is_err());
}

#[test]
fn end_of_file_is_gone() {
    let (left, right) = scm::pair().unwrap();
    drop(left);
    let error = receive(right.as_fd(), &mut [0; 64]).unwrap_err();
    assert!(matches!(error, Error::Gone));
    let error = send(right.as_fd(), &encode(&reply_of(1, vec![])).unwrap(), &[]).unwrap_err();
    assert!(matches!(error, Error::Gone));
}

#[test]
fn unknown_fields_of_a_newer_peer_are_skipped() {
    let mut bytes = reply_of(9, b"x".to_vec()).encode_to_vec();
    // Field 1000, length-delimited, two bytes.
    bytes.extend([0xc2, 0x3e, 2, 1, 2]);
    let (got, _) = decode(&bytes, vec![]).unwrap();
    assert_eq!(got, reply_of(9, b"x".to_vec()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode(&bytes, vec![]);
    }

    #[test]
    fn a_request_survives_the_trip(
        id in any::<u64>(),
        name in ".{0,40}",
        spec in proptest::collection::vec(any::<u8>(), 0..100_000),
        tty in any::<bool>(),
        pid in any::<i32>(),
    ) {
        let create = CreateContainer { container_id: name.clone(), spec, tty, ..CreateContainer::default() };
        for body in [
            request::Body::CreateContainer(create),
            request::Body::Hello(Hello { pid, version: name, ..Hello::default() }),
        ] {
            let envelope = Envelope { id, request: Some(Request { body: Some(body) }), ..Envelope::default() };
            let (got, fds) = through(&envelope, &[]).unwrap();
            prop_assert_eq!(got, envelope);
            prop_assert!(fds.is_empty());
        }
    }

    #[test]
    fn an_event_survives_the_trip(exit_code in any::<i32>(), oom_killed in any::<bool>(), finished_at in any::<i64>()) {
        let exit = crate::message::Exit { exit_code, oom_killed, finished_at, ..Default::default() };
        let event = Event { body: Some(event::Body::Exited(exit)) };
        let envelope = Envelope { event: Some(event), ..Envelope::default() };
        prop_assert_eq!(through(&envelope, &[]).unwrap().0, envelope);
    }
}
