//! What becomes of the bytes of an answer on their way.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::Value;

use super::fault::WatchFault;

/// The bytes of an answer; an error in them resets the connection.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// How many pieces slow bytes come in.
const PIECES: usize = 8;

/// The error of a connection that is reset here.
pub fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// In pieces, with this time before each.
pub fn slowly(bytes: ByteStream, pause: Duration) -> ByteStream {
    let pieces = bytes.flat_map(|chunk| match chunk {
        Ok(chunk) => {
            let size = chunk.len().div_ceil(PIECES).max(1);
            let pieces: Vec<_> = chunk.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            stream::iter(pieces)
        }
        Err(error) => stream::iter(vec![Err(error)]),
    });
    let late = move |piece| async move {
        tokio::time::sleep(pause).await;
        piece
    };
    pieces.then(late).boxed()
}

/// What the client of an answer without end has made of it.
#[derive(Clone, Copy, Debug)]
pub struct Endless {
    /// How many blanks it has taken.
    pub taken: usize,
    /// Since when it is there.
    pub since: Instant,
    /// When it hung up.
    pub until: Option<Instant>,
}

/// Whoever holds it counts what its client does.
struct Count(Arc<Mutex<Option<Endless>>>);

impl Count {
    fn change(&self, change: impl FnOnce(&mut Endless)) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.as_mut().map(change);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.change(|endless| endless.until = Some(Instant::now()));
    }
}

/// With blanks after it that have no end: `size` of them after each `pause`. They are counted in `count`, which is of this answer alone.
pub fn endless(bytes: ByteStream, size: usize, pause: Duration, count: Arc<Mutex<Option<Endless>>>) -> ByteStream {
    let begun = Endless { taken: 0, since: Instant::now(), until: None };
    *count.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
    let blanks = stream::unfold(Count(count), move |count| async move {
        tokio::time::sleep(pause).await;
        count.change(|endless| endless.taken += size);
        Some((Ok(Bytes::from(vec![b' '; size])), count))
    });
    bytes.chain(blanks).boxed()
}

/// As a watch that does not see things as they happen.
pub fn spoil(events: ByteStream, fault: WatchFault) -> ByteStream {
    match fault {
        WatchFault::HeldBack(time) => held_back(lines(events), time),
        WatchFault::Replayed => replayed(lines(events)),
        WatchFault::Muted => events.filter(|part| std::future::ready(part.is_err())).boxed(),
        WatchFault::Cut(time) => {
            let end = stream::once(async move {
                tokio::time::sleep(time).await;
                Err(reset())
            });
            stream::select(events, end).boxed()
        }
    }
}

/// Cuts a watch's answer into its events, each a line.
fn lines(bytes: ByteStream) -> ByteStream {
    let state = (bytes, BytesMut::new());
    stream::unfold(state, |(mut bytes, mut rest)| async move {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end + 1).freeze();
                return Some((Ok(line), (bytes, rest)));
            }
            match bytes.next().await? {
                Ok(chunk) => rest.extend_from_slice(&chunk),
                Err(error) => return Some((Err(error), (bytes, rest))),
            }
        }
    })
    .fuse()
    .boxed()
}

fn held_back(lines: ByteStream, time: Duration) -> ByteStream {
    let batches = stream::unfold(lines, move |mut lines| async move {
        let mut held = vec![lines.next().await?];
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                line = lines.next() => match line {
                    Some(line) => held.push(line),
                    None => break,
                },
            }
        }
        Some((last_of_each(held), lines))
    });
    batches.flat_map(stream::iter).boxed()
}

/// Of several events of an object the last one, as a server gives it whose cache was late.
fn last_of_each(held: Vec<io::Result<Bytes>>) -> Vec<io::Result<Bytes>> {
    let mut seen = HashMap::new();
    for (number, line) in held.iter().enumerate() {
        if let Some(object) = line.as_ref().ok().and_then(object) {
            seen.insert(object, number);
        }
    }
    let is_last = |number, line: &io::Result<Bytes>| {
        line.as_ref().ok().and_then(object).is_none_or(|object| seen.get(&object) == Some(&number))
    };
    let numbered = held.into_iter().enumerate().filter(|(number, line)| is_last(*number, line));
    numbered.map(|(_, line)| line).collect()
}

fn replayed(lines: ByteStream) -> ByteStream {
    let mut before: HashMap<String, Bytes> = HashMap::new();
    let thrice = lines.flat_map(move |line| {
        let old = line.as_ref().ok().and_then(|line| before.insert(object(line)?, line.clone()));
        stream::iter(match (line, old) {
            (Ok(line), Some(old)) => vec![Ok(line.clone()), Ok(old), Ok(line)],
            (line, _) => vec![line],
        })
    });
    thrice.boxed()
}

/// Which object an event is of; none for a bookmark or an error.
fn object(line: &Bytes) -> Option<String> {
    let event: Value = serde_json::from_slice(line).ok()?;
    event.pointer("/object/metadata/uid")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(kind: &str, uid: &str, version: u32) -> String {
        json!({ "type": kind, "object": { "metadata": { "uid": uid, "resourceVersion": version.to_string() } } })
            .to_string()
            + "\n"
    }

    /// What comes out of a watch whose bytes are cut wherever it is worst.
    async fn out_of(events: &[String], fault: WatchFault) -> Vec<String> {
        let bytes: Vec<_> =
            events.concat().into_bytes().chunks(7).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let spoilt: Vec<_> = spoil(stream::iter(bytes).boxed(), fault).collect().await;
        spoilt.into_iter().map(|line| String::from_utf8(line.unwrap().to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn an_answer_without_end_is_counted_for_as_long_as_somebody_takes_it() {
        let count = Arc::default();
        let answer = stream::iter([Ok(Bytes::from_static(b"{}"))]).boxed();
        let mut bytes = endless(answer, 3, Duration::from_millis(1), Arc::clone(&count));
        let mut said = Vec::new();
        for _ in 0..3 {
            said.extend(bytes.next().await.unwrap().unwrap());
        }
        let seen = || count.lock().unwrap().unwrap();
        assert_eq!((said.as_slice(), seen().taken, seen().until), (&b"{}      "[..], 6, None));
        drop(bytes);
        assert!(seen().until.is_some());
    }

    #[tokio::test]
    async fn of_events_that_are_held_back_the_last_of_each_object_comes() {
        let [a1, b1, a2] = [event("ADDED", "a", 1), event("ADDED", "b", 2), event("MODIFIED", "a", 3)];
        let bookmark = json!({ "type": "BOOKMARK", "object": { "metadata": {} } }).to_string() + "\n";
        let events = [a1, b1.clone(), bookmark.clone(), a2.clone()];
        assert_eq!(out_of(&events, WatchFault::HeldBack(Duration::from_millis(20))).await, [b1, bookmark, a2]);
    }

    #[tokio::test]
    async fn events_that_are_replayed_end_with_the_newest() {
        let [a1, a2, gone] = [event("ADDED", "a", 1), event("MODIFIED", "a", 2), event("DELETED", "a", 3)];
        let events = [a1.clone(), a2.clone(), gone.clone()];
        let expected = [a1.clone(), a2.clone(), a1, a2.clone(), gone.clone(), a2, gone];
        assert_eq!(out_of(&events, WatchFault::Replayed).await, expected);
    }
}
