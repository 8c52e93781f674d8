//! Work of other people's code on foreign bytes, which may panic: the panic out as an error, and not as a trace.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether the thread is in [`survived`].
    static IS_FOREIGN: Cell<bool> = const { Cell::new(false) };
}

/// The work panicked.
#[derive(Debug, PartialEq, Eq)]
pub struct Panicked;

/// Runs work that must not end the run over the bytes it is given. A panic in it is not printed.
pub fn survived<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_FOREIGN.get() {
                print(panic);
            }
        }));
    });
    let was_foreign = IS_FOREIGN.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_FOREIGN.set(was_foreign);
    result.map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_thread_goes_on() {
        assert_eq!(survived(|| -> u32 { panic!("over foreign bytes") }), Err(Panicked));
        assert_eq!(survived(|| survived(|| 1)), Ok(Ok(1)));
        assert!(!IS_FOREIGN.get());
    }
}
