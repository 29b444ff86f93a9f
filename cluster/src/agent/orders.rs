//! What the coordinator is told by its agent while it runs: whether groups may begin, and how many rollout workers there are to
//! be. One pipe for all incarnations of the coordinator, a line of JSON each time anything changes and once for every new
//! coordinator: the last line is all that counts.
use crate::controller::Standing;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeWriter, Write};
use tokio::sync::watch;

/// The agent's end.
pub(crate) struct Orders {
    pipe: PipeWriter,
    now: Standing,
}

impl Orders {
    /// A pipe whose reading end is handed to coordinators. Never waits for one that does not read.
    pub(crate) fn new(pipe: PipeWriter) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe, now: Standing::default() })
    }

    /// Changes something, and tells.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Standing)) {
        let before = self.now;
        change(&mut self.now);
        if self.now != before {
            self.repeat();
        }
    }

    /// Whether groups may not begin.
    pub(crate) fn paused(&self) -> bool {
        self.now.paused
    }

    /// For a coordinator that has only just come.
    pub(crate) fn repeat(&mut self) {
        let Ok(mut line) = serde_json::to_vec(&self.now) else { return };
        line.push(b'\n');
        // Full: nobody reads, and whoever does next is told again.
        let _ = self.pipe.write_all(&line);
    }
}

/// The coordinator's end: the latest of what its agent says.
pub(crate) fn listen(pipe: File) -> std::io::Result<watch::Receiver<Standing>> {
    let (tell, told) = watch::channel(Standing::default());
    std::thread::Builder::new().name("orders".into()).spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // Half a line, left by a predecessor that died while it read: the next one is whole.
            let Ok(standing) = serde_json::from_str(&line) else { continue };
            tell.send_replace(standing);
        }
    })?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_word_counts_and_nobody_waits_for_a_reader() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut orders = Orders::new(writer).unwrap();
        for n in 0..100_000u32 {
            orders.change(|s| s.rollout_workers = Some((n % 7) as u16 + 1));
        }
        let mut told = listen(File::from(std::os::fd::OwnedFd::from(reader))).unwrap();
        let wait = told.wait_for(|s| s.rollout_workers == Some(3));
        tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.unwrap().unwrap();
        orders.change(|s| s.paused = true);
        let wait = told.wait_for(|s| s.paused);
        tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.unwrap().unwrap();
    }
}
