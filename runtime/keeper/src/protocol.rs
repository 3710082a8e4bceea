//! What a keeper and its controller say to each other, over a SOCK_SEQPACKET
//! socket; one message is one packet. A plan does not fit into a packet: it
//! comes in a sealed memory file, the first descriptor of its message, and
//! the plan's own descriptors follow it.
//!
//! Requests carry a token that comes back in the reply. `Exited` comes by
//! itself. A keeper serves one controller at a time; a new connection takes
//! the place of the old one.

use std::ffi::CString;

use crate::plan::Failure;
use crate::{wire_enum, wire_struct};

/// Largest packet, in bytes.
pub const MAX_PACKET_BYTES: usize = 128 << 10;

/// Most processes of one keeper, finished ones that are not forgotten
/// included: their statuses (at most 400 bytes each) fit into one packet.
pub const MAX_PROCESSES: usize = 256;

wire_enum! {
    /// What a process is for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        /// Holds the pod's namespaces.
        1 Pause {}
        /// A container's first process.
        2 Container {}
        /// Runs beside it; forgotten by itself once its end was told.
        3 Exec {}
    }
}

wire_struct! {
    /// Where a container's output goes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct LogTarget {
        /// Absolute path of the log file.
        pub path: String,
        /// A file of this size, in bytes, is rotated.
        pub max_bytes: u64,
        /// Files that are kept, the current one included; at least 2.
        pub max_files: u32,
    }

    /// A process to make.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct StartRequest {
        /// Names the process: `pause`, `<container>.<attempt>`, or
        /// `exec_<number>`; characters `[A-Za-z0-9._-]`, at most 100.
        pub key: String,
        /// What it is for.
        pub kind: Kind,
        /// Output is piped into this log (standard output and error of the
        /// plan's `stdio` are then taken from the keeper's own FIFOs).
        pub log: Option<LogTarget>,
        /// Standard input is a FIFO `<key>.in` in the run directory.
        pub stdin: bool,
        /// The last descriptor is an OOM counter (`memory.events` of v2 or
        /// `memory.oom_control` of v1), whose text is kept with the exit.
        pub oom_counter: bool,
    }

    /// How a process ended.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Exit {
        /// Exit code, or 128 + signal; -1 where the kernel no longer tells.
        pub code: i32,
        /// The signal, or 0.
        pub signal: i32,
        /// ns since 1970.
        pub finished_ns: u64,
        /// Text of the OOM counter at that time.
        pub oom: String,
    }

    /// A process and how it stands; also the content of `<key>.proc` in the
    /// run directory, written by rename at its start and at its end.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ProcessStatus {
        /// Its name.
        pub key: String,
        /// What it is for.
        pub kind: Kind,
        /// On the host.
        pub pid: i32,
        /// Start time in clock ticks since boot (field 22 of
        /// /proc/PID/stat, proc(5)): with it a pid names one process.
        pub start_ticks: u64,
        /// ns since 1970.
        pub started_ns: u64,
        /// Set when it has ended.
        pub exit: Option<Exit>,
    }
}

wire_enum! {
    /// From the controller.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Request {
        /// First message on the socket that a keeper is started with (its
        /// standard input). Descriptors: listening socket, run directory,
        /// `tasks` (v1) or `cgroup.procs` (v2) files
        /// of rkube's own cgroup to enter (any number).
        1 Configure {
            /// `PROTOCOL_VERSION` of the sender.
            version: u32,
            /// The pod, for messages.
            pod: String,
            /// Program and arguments that start a writer, run when a process
            /// has ended and no controller is there.
            writer: Vec<CString>,
        }
        /// First message of a controller that connects later.
        2 Hello {
            /// `PROTOCOL_VERSION` of the sender.
            version: u32,
        }
        /// Makes a process.
        3 Start {
            /// Comes back.
            token: u64,
            /// Which.
            request: StartRequest,
        }
        /// Sends a signal to a process.
        4 Signal {
            /// Comes back.
            token: u64,
            /// Which.
            key: String,
            /// 0 to 64.
            signal: i32,
        }
        /// Drops what is known of a finished process, its file included.
        5 Forget {
            /// Comes back.
            token: u64,
            /// Which.
            key: String,
        }
        /// Sets the size of a terminal.
        6 Resize {
            /// Comes back.
            token: u64,
            /// Which.
            key: String,
            /// Columns.
            columns: u16,
            /// Rows.
            rows: u16,
        }
        /// Takes over a process of a keeper that has died; descriptors: its
        /// pidfd, its terminal's master, an OOM counter (the last two where
        /// `terminal` and `oom_counter` say so).
        7 Adopt {
            /// Comes back.
            token: u64,
            /// As it was started.
            request: StartRequest,
            /// As it was known.
            status: ProcessStatus,
            /// The master of its terminal comes with it.
            terminal: bool,
        }
        /// Ends the keeper; refused while a process lives.
        8 Shutdown {
            /// Comes back.
            token: u64,
        }
        /// Hands out the master of a terminal (for attach).
        9 Terminal {
            /// Comes back.
            token: u64,
            /// Which.
            key: String,
        }
        /// The controller is about to go in good order: nothing is started
        /// in its place.
        10 Goodbye {}
        /// Copies the output of a process to pipes from now on. Descriptors:
        /// their write ends, for standard output and, without a terminal, for
        /// errors. Version 2.
        11 Attach {
            /// Comes back.
            token: u64,
            /// Which.
            key: String,
        }
        /// As `Start`, with a standard input that `CloseInput` ends. Version 2.
        12 StartOnce {
            /// Comes back.
            token: u64,
            /// Which.
            request: StartRequest,
        }
        /// Ends the standard input of a process that was made by `StartOnce`,
        /// once whoever writes to it has closed it, too. Version 2.
        13 CloseInput {
            /// Comes back.
            token: u64,
            /// Which.
            key: String,
        }
    }
}

wire_enum! {
    /// From the keeper.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Reply {
        /// Answers `Configure` and `Hello`.
        1 Hello {
            /// `PROTOCOL_VERSION` of the keeper.
            version: u32,
            /// Its pid.
            pid: i32,
            /// What it holds.
            processes: Vec<ProcessStatus>,
        }
        /// The program has been executed. Descriptors: pidfd, the terminal's
        /// master where there is one (`terminal`).
        2 Started {
            /// Of the request.
            token: u64,
            /// The process.
            status: ProcessStatus,
            /// A terminal's master is attached.
            terminal: bool,
            /// What was done in another way than asked.
            warnings: Vec<String>,
        }
        /// The request could not be done. From a one-shot stage, descriptor:
        /// the pidfd of the process that failed and was killed, where it
        /// came to one; the caller reaps it.
        3 Failed {
            /// Of the request.
            token: u64,
            /// Why.
            failure: Failure,
        }
        /// The request is done; a descriptor may be attached.
        4 Done {
            /// Of the request.
            token: u64,
        }
        /// A process has ended.
        5 Exited {
            /// Which, and how.
            status: ProcessStatus,
        }
    }
}
