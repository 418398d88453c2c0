//! Threads that stay awake while a pass runs.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// For how long a thread that finds nothing to do looks for more. Between the parallel parts of a token lie some tens of
/// microseconds; what takes longer is no pass of small operations, and is not slowed by a thread that has to wake up.
const PATIENCE: Duration = Duration::from_millis(1);

/// Runs `work` on one of rayon's threads, from which operations start without waiting for a thread to wake up, while the
/// others look for parts of them: a sleeping thread would take as long to wake up as its part of a token's product
/// takes.
pub(super) fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let over = &AtomicBool::new(false);
    rayon::scope(|scope| {
        let own = rayon::current_thread_index();
        scope.spawn_broadcast(move |_, thread| {
            // The thread of the work may come by here while it waits for others.
            if Some(thread.index()) != own {
                look_for_work(over);
            }
        });
        let _over = Over(over);
        work()
    })
}

/// Executes what is there to be executed until the end, or until nothing has come for a while.
fn look_for_work(over: &AtomicBool) {
    let mut idle_since = None;
    while !over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle_since = None;
            continue;
        }
        if idle_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return;
        }
        spin_loop();
    }
}

/// Says that it is over when it goes, which a panic brings about too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use rayon::prelude::*;

    use super::run;

    #[test]
    fn sessions_end_whatever_happens_in_them() {
        let sum = || (0..1000u64).into_par_iter().sum::<u64>();
        assert_eq!(run(|| (run(sum), sum())), (499_500, 499_500), "one in another");
        let several: Vec<u64> = (0..8).into_par_iter().map(|_| run(sum)).collect();
        assert_eq!(several, [499_500; 8], "on several threads");
        assert!(catch_unwind(|| run(|| panic!("as work may"))).is_err());
        assert_eq!(run(sum), 499_500, "after a panic");
    }
}
