//! The side that fetches, and says what came.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::{Context as _, bail};
use nave_sdk::wire::proof::{
    Challenge, Failure, INLINE_MAX, Message, Nonce, Opening, Reason, TransferTask,
    transfer::{Fetched, PIECE, reached},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

/// How long the other host is tried: it learns of the transfer when this one does.
const REACH: Duration = Duration::from_secs(30);
/// How long one try may take, and the pause after it.
const TRY: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(200);

/// A transfer to this host.
#[derive(Debug)]
pub struct Fetch {
    /// This host's address in the mesh, where it is part of one.
    own: Option<Ipv6Addr>,
    /// How long the other host is tried.
    reach: Duration,
    stream: Option<TcpStream>,
    fetched: Option<Fetched>,
}

impl Fetch {
    /// Of the host at this address.
    #[must_use]
    pub fn new(own: Option<Ipv6Addr>) -> Self {
        Self { own, reach: REACH, stream: None, fetched: None }
    }

    /// Answers the present step of a challenge. An agent that was started in between connects again. That the
    /// other host cannot be reached is an answer of its own: it may be that one's fault.
    ///
    /// # Errors
    /// Why nothing came.
    pub async fn go_on(&mut self, challenge: &Challenge, task: &TransferTask) -> anyhow::Result<Message> {
        match challenge.reveals.as_slice() {
            [] => Ok(match self.reach(task).await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    Message::Commitment(reached(challenge))
                }
                Err(error) => {
                    Message::Failed(Failure { code: Reason::PortUnreachable, message: format!("{error:#}") })
                }
            }),
            [request] => {
                let stream = match self.stream.take() {
                    Some(stream) => stream,
                    None => self.reach(task).await?,
                };
                let fetched = self.fetched.insert(fetch(stream, request, task).await?);
                Ok(Message::Commitment(fetched.commitment().context("fetch at least one chunk")?))
            }
            [_, _, ..] => {
                let fetched =
                    self.fetched.as_ref().context("show what came before this agent was started")?;
                let opening = fetched.opening(challenge, task).context("show more than was asked for")?;
                if opening.len() > INLINE_MAX {
                    bail!("so many samples are not shown");
                }
                Ok(Message::Opening(Opening::Inline(opening)))
            }
        }
    }

    async fn reach(&self, task: &TransferTask) -> anyhow::Result<TcpStream> {
        let tries = async {
            loop {
                match timeout(TRY, connect(self.own, task)).await {
                    Ok(Ok(stream)) => return stream,
                    Ok(Err(error)) => tracing::debug!(%error, "the other host is not reached yet"),
                    Err(_) => tracing::debug!("the other host does not answer yet"),
                }
                sleep(AGAIN).await;
            }
        };
        timeout(self.reach, tries).await.with_context(|| format!("reach the other host at {}", task.source))
    }
}

async fn connect(own: Option<Ipv6Addr>, task: &TransferTask) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v6()?;
    if let Some(own) = own {
        socket.bind((own, 0).into())?;
    }
    socket.connect((task.source, task.port).into()).await
}

async fn fetch(mut stream: TcpStream, request: &Nonce, task: &TransferTask) -> anyhow::Result<Fetched> {
    stream.write_all(&request.0).await.context("ask the other host")?;
    let (mut fetched, mut chunk) = (Fetched::default(), vec![0; PIECE]);
    for _ in 0..task.bytes / PIECE as u64 {
        stream.read_exact(&mut chunk).await.context("receive all that was asked for")?;
        fetched.take(&chunk);
    }
    Ok(fetched)
}

#[cfg(test)]
mod tests {
    use nave_domain::Millis;
    use nave_sdk::wire::{
        host::Serve,
        proof::{Task, transfer::Content},
    };
    use tokio::net::TcpListener;

    use super::*;
    use crate::transfer::serve::serve;

    fn challenge(task: &TransferTask) -> Challenge {
        Challenge::new(
            format!("challenge_{:032x}", 1).parse().expect("an id"),
            format!("host_{:032x}", 2).parse().expect("an id"),
            Task::Transfer(task.clone()),
            Nonce([1; 32]),
        )
    }

    async fn site(peer: Ipv6Addr) -> (TransferTask, TcpListener, Serve) {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.expect("a port");
        let (bytes, port) = (5 << 16, listener.local_addr().expect("its address").port());
        let patience_ms = vec![Millis(1_000); 3];
        let task = TransferTask { source: Ipv6Addr::LOCALHOST, port, bytes, samples: 3, patience_ms };
        (task, listener, Serve { key: Nonce([7; 32]), bytes, port, peer })
    }

    #[tokio::test]
    async fn what_one_host_serves_the_other_fetches_shows_and_asks_for_again_after_a_restart() {
        let (task, listener, wish) = site(Ipv6Addr::LOCALHOST).await;
        let serving = tokio::spawn(async move { serve(&listener, &wish).await });
        let mut expected = Fetched::default();
        let (content, mut chunk) = (Content::of(&Nonce([7; 32]), &Nonce([9; 32])), vec![0; PIECE]);
        for number in 0..5 {
            content.chunk(number, &mut chunk);
            expected.take(&chunk);
        }
        let mut challenge = challenge(&task);
        let mut fetch = Fetch::new(None);
        let first = fetch.go_on(&challenge, &task).await.expect("reached");
        assert_eq!(first, Message::Commitment(reached(&challenge)));
        challenge.reveals.push(Nonce([9; 32]));
        for mut fetch in [fetch, Fetch::new(Some(Ipv6Addr::LOCALHOST))] {
            let mut challenge = challenge.clone();
            let root = fetch.go_on(&challenge, &task).await.expect("fetched");
            assert_eq!(Some(root), expected.commitment().map(Message::Commitment));
            challenge.reveals.push(Nonce([7; 32]));
            let opening = fetch.go_on(&challenge, &task).await.expect("opened");
            let shown = expected.opening(&challenge, &task).expect("an opening");
            assert_eq!(opening, Message::Opening(Opening::Inline(shown)));
        }
        serving.abort();
    }

    #[tokio::test]
    async fn that_the_other_host_cannot_be_reached_is_told_apart_from_what_is_slow() {
        let (task, listener, _) = site(Ipv6Addr::LOCALHOST).await;
        drop(listener);
        let mut fetch = Fetch { reach: Duration::from_millis(300), ..Fetch::new(None) };
        let answer = fetch.go_on(&challenge(&task), &task).await.expect("an answer");
        let Message::Failed(Failure { code, message }) = answer else { panic!("{answer:?}") };
        assert_eq!(code, Reason::PortUnreachable);
        assert!(message.contains("reach the other host at ::1"), "{message}");
    }

    #[tokio::test]
    async fn nobody_else_is_served() {
        let (task, listener, wish) = site("fd00::7".parse().expect("an address")).await;
        let serving = tokio::spawn(async move { serve(&listener, &wish).await });
        let stream = Fetch::new(None).reach(&task).await.expect("a connection");
        let error = fetch(stream, &Nonce([9; 32]), &task).await.expect_err("nothing comes");
        assert!(error.downcast_ref::<std::io::Error>().is_some(), "{error:#}");
        serving.abort();
    }
}
