//! A few threads for work that may block: reading the log, decoding what was read.
//!
//! They end with the last clone of [`Aside`]. Whoever asks waits for its own answer, so what is queued is bounded by the
//! number of those who ask.

use tokio::sync::oneshot;

use crate::error::Stopped;

/// How many questions are answered at once.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// Does work beside every runtime. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    jobs: flume::Sender<Job>,
}

impl Aside {
    /// Starts the threads.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> std::io::Result<Aside> {
        // Of those that wait one is woken for each job.
        let (jobs, queue) = flume::unbounded::<Job>();
        for _ in 0..THREADS {
            let queue = queue.clone();
            std::thread::Builder::new().name("hubless-aside".into()).spawn(move || {
                queue.into_iter().for_each(|job| job());
            })?;
        }
        Ok(Aside { jobs })
    }

    /// Does `work` on one of the threads. Dropping the future does not stop what has begun.
    ///
    /// # Errors
    /// [`Stopped`] if it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.begin(reply, work);
        answer.await.map_err(|_| Stopped)
    }

    /// Has `work` done on one of the threads, which answers through `reply`; it is dropped if the work panicked.
    pub fn begin<T: Send + 'static>(&self, reply: oneshot::Sender<T>, work: impl FnOnce() -> T + Send + 'static) {
        // Without a thread that takes it, the job and its reply are dropped, which says so.
        let _ = self.jobs.send(Box::new(move || {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            if let Ok(done) = done {
                // Whoever asked may have gone.
                let _ = reply.send(done);
            }
        }));
    }
}
