//! A node's API over its control socket: the same HTTP and WebSocket that browsers use.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::{Exit, Failure, plain};

/// A node on this machine answers at once, or something is wrong with it. Long polls get this on top.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection to a node, made again where the node closed it.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The node refused it.
    #[error("{message}")]
    Refused { status: StatusCode, code: String, message: String },
    /// Nobody is there.
    #[error("the node does not answer: {}", plain(.0))]
    Unreachable(io::Error),
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
        ApiError::Garbled(error.to_string())
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
        self.request(Method::GET, path, Bytes::new(), patience).await
    }

    /// Sends `body` to `path`.
    pub async fn post<T: DeserializeOwned>(&mut self, path: &str, body: &serde_json::Value) -> Result<T, ApiError> {
        self.request(Method::POST, path, body.to_string().into(), Duration::ZERO).await
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

    async fn request<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<T, ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ApiError::Garbled(error.to_string()))?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT + patience, self.exchange(request)).await;
        let (status, body) = answer.map_err(|_| ApiError::Unreachable(io::ErrorKind::TimedOut.into()))??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| ApiError::Garbled(error.to_string()));
        }
        Err(match serde_json::from_slice::<Refusal>(&body) {
            Ok(Refusal { error: RefusalError { code, message } }) => ApiError::Refused { status, code, message },
            Err(_) => ApiError::Garbled(format!("status {status}")),
        })
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ApiError> {
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
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        self.connection = Some(connection);
        Ok((status, body))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(ApiError::Unreachable)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what goes wrong is told to the request.
        tokio::spawn(connection);
        Ok(sender)
    }
}
