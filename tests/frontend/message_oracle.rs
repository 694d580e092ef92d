// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any messages, with any fds: whatever a frontend sends, what it reads of the configuration is right,
//! the next one is served, and nothing of this one is left.
//!
//! Also used by the fuzz targets.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::patience;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::vmm::{Abilities, Vmm};

const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const MEMORY: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000_0000;

/// What a frontend begins with, as it should: request, body, and how many fds.
const HANDSHAKE: [(u32, &[u64], usize); 14] = [
    (3, &[], 0),
    (1, &[], 0),
    (2, &[1 << 30], 0),
    (16, &[(1 << 3) | (1 << 5) | (1 << 9) | (1 << 10) | (1 << 22)], 0),
    (21, &[], 1),
    // VIRTIO_F_VERSION_1, EVENT_IDX, protocol features, and F_SHMEM_REGION.
    (2, &[(1 << 32) | (1 << 30) | (1 << 29) | 1], 0),
    (5, &[1, MEMORY, MEMORY, USER, 0], 1),
    (8, &[128 << 32], 0),
    (10, &[0], 0),
    (9, &[0, USER, USER + 0x2000, USER + 0x1000, 0], 0),
    (12, &[0], 1),
    (13, &[0], 1),
    (18, &[1 << 32], 0),
    (11, &[0], 0),
];

/// Sends what `data` says to the device at `socket`, whose process has `fds` now, and `idle` while
/// nobody is connected.
pub(crate) fn check(socket: &Path, fds: impl Fn() -> usize, idle: usize, data: &[u8]) {
    let mut data = Data(data);
    let mut frontend = Frontend::new(UnixStream::connect(socket).unwrap());
    let begun = usize::from(data.byte()) % (HANDSHAKE.len() + 1);
    for (request, words, nr_fds) in &HANDSHAKE[..begun] {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let fds: Vec<_> = (0..*nr_fds).map(|_| frontend.good_fd(*request)).collect();
        frontend.send(*request, 1, body.len(), &body, &fds);
    }
    while !data.0.is_empty() {
        frontend.step(&mut data);
    }
    drop(frontend);
    let mut vmm = Vmm::start(socket, Abilities::default());
    assert_eq!(vmm.driver.flush(), 0, "the next frontend");
    drop(vmm);
    let deadline = Instant::now() + patience(Duration::from_secs(10));
    while fds() != idle {
        assert!(Instant::now() < deadline, "{} fds, of {idle}", fds());
        thread::sleep(Duration::from_millis(1));
    }
}

/// What is left of the data; zeroes behind its end.
struct Data<'a>(&'a [u8]);

impl Data<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number that may mean something to somebody.
    fn word(&mut self) -> u64 {
        const KNOWN: [u64; 12] = [
            0,
            1,
            128,
            1 << 32,
            128 << 32,
            MEMORY,
            USER,
            USER + 0x1000,
            USER + 0x2000,
            u64::MAX,
            0x100,
            1 << 30,
        ];
        let byte = self.byte();
        match KNOWN.get(usize::from(byte)) {
            Some(known) => *known,
            None => u64::from(byte) << (self.byte() % 64),
        }
    }
}

/// A frontend that says what it is told to.
struct Frontend {
    stream: UnixStream,
    /// Its end of the socket for requests of the device.
    channel: Option<UnixStream>,
    memory: Option<File>,
    kick: Option<File>,
    /// Nobody knows what is answered to what any more.
    is_garbled: bool,
}

impl Frontend {
    fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream, channel: None, memory: None, kick: None, is_garbled: false }
    }

    /// The fd that belongs with `request`.
    fn good_fd(&mut self, request: u32) -> OwnedFd {
        match request {
            5 => {
                let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
                memory.set_len(MEMORY).unwrap();
                self.memory.insert(memory).try_clone().unwrap().into()
            }
            21 => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                self.channel = Some(ours);
                theirs.into()
            }
            _ => {
                let kick = File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
                self.kick.insert(kick).try_clone().unwrap().into()
            }
        }
    }

    fn any_fd(&mut self, data: &mut Data<'_>) -> OwnedFd {
        match data.byte() % 8 {
            0 => self.good_fd(5),
            1 => self.good_fd(21),
            2 => eventfd(7, EventfdFlags::SEMAPHORE).unwrap(),
            3 => rustix::pipe::pipe().unwrap().0,
            4 => rustix::pipe::pipe().unwrap().1,
            5 => File::open("/dev/null").unwrap().into(),
            6 => memfd_create("empty", MemfdFlags::CLOEXEC).unwrap(),
            _ => self.good_fd(12),
        }
    }

    fn step(&mut self, data: &mut Data<'_>) {
        match data.byte() % 16 {
            0 => self.memory.iter().for_each(|memory| memory.set_len(0).unwrap()),
            1 => self.write_to_kick(),
            2 => self.channel = None,
            // An answer to what was asked, or wasn't.
            3 => {
                let request = u32::from(data.byte() % 12);
                let status = u64::from(data.byte() % 2).to_le_bytes();
                let message = [[request, 5, 8].map(u32::to_le_bytes).concat(), status.to_vec()];
                let _ = self.channel.as_ref().map(|mut one| one.write(&message.concat()));
            }
            4 => thread::sleep(Duration::from_millis(1)),
            // A kick for a request that is in memory, or isn't.
            5 => {
                if let Some(memory) = &self.memory {
                    let at = u64::from(data.byte()) * 16 + u64::from(data.byte() % 3) * 0x1000;
                    let word = data.word().to_le_bytes();
                    let _ = std::os::unix::fs::FileExt::write_at(memory, &word, at);
                }
                self.write_to_kick();
            }
            6 | 7 => self.ask_for_config(data),
            8..12 => {
                let at = usize::from(data.byte()) % HANDSHAKE.len();
                let (request, words, nr_fds) = HANDSHAKE[at];
                let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                let fds: Vec<_> = (0..nr_fds).map(|_| self.good_fd(request)).collect();
                self.send(request, 9, body.len(), &body, &fds);
            }
            _ => {
                let request = u32::from(data.byte() % 48);
                let flags = u32::from(data.byte() % 16);
                let words = usize::from(data.byte() % 8);
                let body: Vec<u8> = (0..words).flat_map(|_| data.word().to_le_bytes()).collect();
                // The length is right, more often than not.
                let len = match data.byte() {
                    slip @ 0..32 => usize::from(slip) * 149,
                    _ => body.len(),
                };
                self.is_garbled |= len != body.len() || request == GET_CONFIG;
                let nr_fds = match data.byte() {
                    many @ 0..4 => usize::from(many) * 11,
                    few => usize::from(few % 3),
                };
                let fds: Vec<_> = (0..nr_fds).map(|_| self.any_fd(data)).collect();
                self.send(request, flags, len, &body, &fds);
            }
        }
    }

    fn write_to_kick(&self) {
        let _ = self.kick.as_ref().map(|mut kick| kick.write(&1u64.to_ne_bytes()));
    }

    /// Sends a message, if it is still listened to.
    fn send(&mut self, request: u32, flags: u32, len: usize, body: &[u8], fds: &[OwnedFd]) {
        // What was answered isn't wanted, but must not fill the socket.
        while self.stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
        let len = u32::try_from(len).unwrap();
        let message =
            [[request, flags, len].map(u32::to_le_bytes).concat(), body.to_vec()].concat();
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        let bytes = [IoSlice::new(&message)];
        let sent = sendmsg(&self.stream, &bytes, &mut control, SendFlags::NOSIGNAL);
        self.is_garbled |= sent != Ok(message.len());
    }

    /// Asks for a part of the configuration, and holds the answer against what there is: sixteen zeroes,
    /// whatever was written there.
    fn ask_for_config(&mut self, data: &mut Data<'_>) {
        let offset = u32::from(data.byte() % 24);
        let len = u32::from(data.byte() % 24);
        let body = [offset, len, 0].map(u32::to_le_bytes).concat();
        let body = [body, vec![0xaa; len as usize]].concat();
        // A write is taken and forgotten.
        if data.byte() % 2 == 0 {
            self.send(SET_CONFIG, 1, body.len(), &body, &[]);
        }
        self.send(GET_CONFIG, 1, body.len(), &body, &[]);
        let given = if len > 0 && offset + len <= 16 { len } else { 0 };
        let expected = [GET_CONFIG, 5, 12 + given, offset, given, 0].map(u32::to_le_bytes).concat();
        let expected = [expected, vec![0; given as usize]].concat();
        if self.is_garbled {
            return;
        }
        let deadline = Instant::now() + patience(Duration::from_secs(10));
        let mut answers = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(read) if read > 0 => answers.extend(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                // Who hasn't negotiated it is dropped.
                _ => return,
            }
            while let Some(len) = message_len(&answers) {
                let rest = answers.split_off(len);
                if answers[..4] == GET_CONFIG.to_le_bytes() {
                    assert_eq!(answers, expected, "{offset} {len}");
                    return;
                }
                answers = rest;
            }
            assert!(Instant::now() < deadline, "no answer to GET_CONFIG");
        }
    }
}

/// How long the first message is, if it is all there.
fn message_len(bytes: &[u8]) -> Option<usize> {
    let size = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    Some(12 + size as usize).filter(|len| *len <= bytes.len())
}
