//! A node's API over its control socket: the same HTTP and WebSocket that browsers use.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::{Exit, Failure, plain};

/// A node on this machine answers at once, or something is wrong with it. Long polls get this on top.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One connection to a node, made again where the node closed it.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    connection: Option<SendRequest<Body>>,
}

/// An answer that is read as it comes.
#[derive(Debug)]
pub struct Download(Incoming);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The node refused it.
    #[error("{message}")]
    Refused { status: StatusCode, code: String, message: String },
    /// Nobody is there.
    #[error("the node does not answer: {}", plain(.0))]
    Unreachable(io::Error),
    /// What was to be sent could not be read.
    #[error("what is to be sent cannot be read: {0}")]
    Unread(String),
    /// The connection broke, or the answer is not what the interface says.
    #[error("the node's answer is not understood: {0}")]
    Garbled(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        let exit = match &error {
            ApiError::Refused { status, .. }
                if status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS =>
            {
                Exit::Usage
            }
            _ => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<hyper::Error> for ApiError {
    fn from(error: hyper::Error) -> ApiError {
        match std::error::Error::source(&error) {
            Some(source) if error.is_user() => ApiError::Unread(source.to_string()),
            _ => ApiError::Garbled(error.to_string()),
        }
    }
}

/// The body of every refusal.
#[derive(Deserialize)]
struct Refusal {
    error: RefusalError,
}

#[derive(Deserialize)]
struct RefusalError {
    code: String,
    message: String,
}

impl Api {
    /// The API behind `socket`; nothing is connected yet.
    pub fn new(socket: &Path) -> Api {
        Api { socket: socket.into(), connection: None }
    }

    /// A second one of the same node.
    pub fn another(&self) -> Api {
        Api::new(&self.socket)
    }

    /// Asks for `path`; the node may take `patience` before it answers.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str, patience: Duration) -> Result<T, ApiError> {
        let request = request(Method::GET, path, whole(Bytes::new()))?;
        let answer = async { read(self.exchange(request).await?).await };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT + patience, answer).await;
        answer.map_err(|_| ApiError::Unreachable(io::ErrorKind::TimedOut.into()))?
    }

    /// Sends `body` to `path`; the node may take `patience` before it answers.
    pub async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &serde_json::Value,
        patience: Duration,
    ) -> Result<T, ApiError> {
        let request = request(Method::POST, path, whole(body.to_string().into()))?;
        let answer = async { read(self.exchange(request).await?).await };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT + patience, answer).await;
        answer.map_err(|_| ApiError::Unreachable(io::ErrorKind::TimedOut.into()))?
    }

    /// Asks for `path`, whose answer may be of any length.
    pub async fn download(&mut self, path: &str) -> Result<Download, ApiError> {
        let request = request(Method::GET, path, whole(Bytes::new()))?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(request)).await;
        let response = answer.map_err(|_| ApiError::Unreachable(io::ErrorKind::TimedOut.into()))??;
        if response.status().is_success() { Ok(Download(response.into_body())) } else { Err(refused(response).await) }
    }

    /// Sends what comes of `body`, whatever its length, to `path`; the node takes its time.
    pub async fn upload<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let body = StreamBody::new(futures_util::TryStreamExt::map_ok(body, Frame::data)).boxed_unsync();
        read(self.exchange(request(Method::POST, path, body)?).await?).await
    }

    /// Opens a WebSocket that speaks `hubless.v1`.
    pub async fn socket(&self) -> Result<WebSocketStream<UnixStream>, ApiError> {
        let garbled = |error: tokio_tungstenite::tungstenite::Error| ApiError::Garbled(error.to_string());
        let mut request = "ws://localhost/".into_client_request().map_err(garbled)?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("hubless.v1"));
        let stream = UnixStream::connect(&self.socket).await.map_err(ApiError::Unreachable)?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(garbled)?;
        Ok(socket)
    }

    /// The head of the answer; the connection is free again once its body was read.
    async fn exchange(&mut self, request: Request<Body>) -> Result<Response<Incoming>, ApiError> {
        let mut kept = self.connection.take();
        let alive = match &mut kept {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        let mut connection = match kept.filter(|_| alive) {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let response = connection.send_request(request).await?;
        self.connection = Some(connection);
        Ok(response)
    }

    async fn connect(&self) -> Result<SendRequest<Body>, ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(ApiError::Unreachable)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what goes wrong is told to the request.
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Download {
    /// The next bytes; none at the end of a whole answer. One that was broken off is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        while let Some(frame) = self.0.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

fn request(method: Method, path: &str, body: Body) -> Result<Request<Body>, ApiError> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header(HOST, "localhost").header(CONTENT_TYPE, "application/octet-stream").body(body);
    request.map_err(|error| ApiError::Garbled(error.to_string()))
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ApiError> {
    if !response.status().is_success() {
        return Err(refused(response).await);
    }
    let body = response.into_body().collect().await?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| ApiError::Garbled(error.to_string()))
}

async fn refused(response: Response<Incoming>) -> ApiError {
    let status = response.status();
    let body = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return error.into(),
    };
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(Refusal { error: RefusalError { code, message } }) => ApiError::Refused { status, code, message },
        Err(_) => ApiError::Garbled(format!("status {status}")),
    }
}
