//! A few threads for work that may block: reading the log, decoding what was read.
//!
//! They end with the last clone of [`Aside`]. Whoever asks waits for its own answer, so what is queued is bounded by the
//! number of those who ask.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Stopped;

/// How many questions are answered at once.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// Does work beside every runtime. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    jobs: Sender<Job>,
}

impl Aside {
    /// Starts the threads.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> std::io::Result<Aside> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let queue = queue.clone();
            std::thread::Builder::new().name("hubless-aside".into()).spawn(move || {
                while let Some(job) = next(&queue) {
                    job();
                }
            })?;
        }
        Ok(Aside { jobs })
    }

    /// Does `work` on one of the threads. Dropping the future does not stop what has begun.
    ///
    /// # Errors
    /// [`Stopped`] if it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let job = Box::new(move || {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            if let Ok(done) = done {
                // Whoever asked may have gone.
                let _ = reply.send(done);
            }
        });
        self.jobs.send(job).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

fn next(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
