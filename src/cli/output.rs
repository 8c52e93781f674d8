//! What is printed: data on stdout, where a closed pipe is no error, and all else on stderr.

use std::io::{self, Write};

use super::Exit;
use crate::error::Error;

/// Standard output; once its reader is gone, lines go nowhere.
pub struct Output {
    is_closed: bool,
}

impl Output {
    pub fn stdout() -> Output {
        Output { is_closed: false }
    }

    pub fn line(&mut self, text: &str) -> Result<Exit, Error> {
        if !self.is_closed {
            let mut stdout = io::stdout().lock();
            match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_closed = true,
                Err(source) => return Err(Error::Write { path: "standard output".into(), source }),
                Ok(()) => {}
            }
        }
        Ok(Exit::Done)
    }
}

/// Prints a line on standard error; unlike `eprintln!`, a closed one does not end the run.
pub fn diagnostic(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
