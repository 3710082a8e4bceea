//! An API server that allows everything, to try clients on:
//! `cargo run -p rkube-apiserver --example serve -- FOLDER [PORT]`.

use std::path::PathBuf;
use std::process::ExitCode;

use rkube_apiserver::testing;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(folder) = args.next().map(PathBuf::from) else {
        eprintln!("usage: serve FOLDER [PORT]");
        return ExitCode::from(64);
    };
    let port = args.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    let started = match testing::engine(&folder.join("store")) {
        Ok(engine) => testing::serve(&folder, engine, port).await,
        Err(error) => Err(error.into()),
    };
    match started {
        Ok(server) => {
            println!("export KUBECONFIG={}", server.kubeconfig.display());
            std::future::pending::<()>().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
