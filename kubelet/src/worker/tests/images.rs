//! Images of containers: policies, reasons, pull secrets.

use super::*;

fn waits(reason: &'static str) -> impl Fn(&PodView) -> bool {
    move |v| state(v)["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
}

/// Pulls since the last question.
fn pulls(host: &Host) -> Vec<String> {
    host.fake
        .calls()
        .into_iter()
        .filter(|c| c.starts_with("pull"))
        .collect()
}

/// A pod's events as kubectl shows them: type, reason, message.
fn events(manager: &Manager<Engine>, uid: &str) -> Vec<String> {
    let all = manager.journal().list(Some(uid));
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    all.iter()
        .map(|e| {
            format!(
                "{} {}: {}",
                text(&e.type_),
                text(&e.reason),
                text(&e.message)
            )
        })
        .collect()
}

fn container(image: &str, policy: &str) -> Value {
    json!([{"name": "c", "image": image, "imagePullPolicy": policy}])
}

/// A pod with a pull secret for Docker Hub.
fn with_secret(name: &str, image: &str, policy: &str, password: &str) -> Bundle {
    let mut one = bundle(
        name,
        json!({"containers": container(image, policy), "imagePullSecrets": [{"name": "pull"}]}),
    );
    let config = json!({"auths": {"docker.io": {"username": "u", "password": password}}});
    let secret = json!({
        "metadata": {"name": "pull"},
        "stringData": {".dockerconfigjson": config.to_string()},
    });
    let secret = serde_json::from_value(secret).unwrap();
    one.objects.secrets.insert("pull".into(), secret);
    one
}

#[tokio::test(start_paused = true)]
async fn always_asks_the_registry_and_a_failure_is_told_and_tried_again() {
    let host = Host::paused();
    let manager = host.manager().await;
    let apply = async |one| manager.apply(one, IfExists::Attach).await.unwrap();
    apply(bundle(
        "a",
        json!({"containers": container("serve", "Always")}),
    ))
    .await;
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    assert_eq!(pulls(&host), ["pull serve:latest"]);
    let told = reasons(&manager, "u-a");
    let position = |r: &str| told.iter().position(|t| t == r).unwrap();
    assert!(position("Pulling") < position("Pulled"), "{told:?}");
    apply(bundle(
        "b",
        json!({"containers": container("missing", "Always")}),
    ))
    .await;
    until(&manager, "u-b", waits("ErrImagePull")).await;
    let view = until(&manager, "u-b", waits("ImagePullBackOff")).await;
    let message = &state(&view)["containerStatuses"][0]["state"]["waiting"]["message"];
    assert!(
        message.as_str().unwrap().contains("no such image"),
        "{message}"
    );
    assert!(
        message
            .as_str()
            .unwrap()
            .starts_with("Back-off pulling image \"missing\": ErrImagePull: "),
        "{message}"
    );
    let told = events(&manager, "u-b");
    for wanted in [
        "Normal Pulling: Pulling image \"missing\"",
        "Warning Failed: Failed to pull image \"missing\": the registry has no such image",
        "Warning Failed: Error: ErrImagePull",
        "Normal BackOff: Back-off pulling image \"missing\"",
        "Warning Failed: Error: ImagePullBackOff",
    ] {
        assert!(
            told.iter().any(|t| t.starts_with(wanted)),
            "{wanted}: {told:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn never_does_not_ask_and_names_that_are_none_are_told() {
    let host = Host::paused();
    let manager = host.manager().await;
    for (name, image, policy, reason) in [
        ("a", "missing", "Never", "ErrImageNeverPull"),
        ("b", "missing:a:b", "Always", "InvalidImageName"),
        ("c", "missing:a:b", "IfNotPresent", "InvalidImageName"),
    ] {
        let one = bundle(name, json!({"containers": container(image, policy)}));
        manager.apply(one, IfExists::Attach).await.unwrap();
        until(&manager, &format!("u-{name}"), waits(reason)).await;
    }
    assert!(pulls(&host).is_empty());
    for (uid, wanted) in [
        (
            "u-a",
            "Warning ErrImageNeverPull: Container image \"missing\" is not present with pull policy of Never",
        ),
        ("u-a", "Warning Failed: Error: ErrImageNeverPull"),
        (
            "u-b",
            "Warning InspectFailed: Failed to apply default image tag \"missing:a:b\": ",
        ),
        ("u-c", "Warning Failed: Error: InvalidImageName"),
    ] {
        let told = events(&manager, uid);
        assert!(
            told.iter().any(|t| t.starts_with(wanted)),
            "{wanted}: {told:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_private_image_is_for_pods_that_can_pull_it() {
    let host = Host::paused();
    let manager = host.manager().await;
    let apply = async |one| manager.apply(one, IfExists::Attach).await.unwrap();
    apply(with_secret("a", "private", "IfNotPresent", "p")).await;
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    assert_eq!(pulls(&host).len(), 1);
    // The image is there now. Without a credential: the registry is asked,
    // which refuses; without asking: it is withheld.
    apply(bundle(
        "b",
        json!({"containers": container("private", "IfNotPresent")}),
    ))
    .await;
    until(&manager, "u-b", waits("ErrImagePull")).await;
    apply(bundle(
        "c",
        json!({"containers": container("private", "Never")}),
    ))
    .await;
    until(&manager, "u-c", waits("ErrImageNeverPull")).await;
    assert!(!pulls(&host).is_empty(), "the registry was asked for b");
    // The same credential needs no second pull, another one has to prove itself.
    apply(with_secret("d", "private", "Never", "p")).await;
    until(&manager, "u-d", |v| phase(v) == "Running").await;
    assert!(pulls(&host).is_empty());
    apply(with_secret("e", "private", "IfNotPresent", "q")).await;
    until(&manager, "u-e", |v| phase(v) == "Running").await;
    assert_eq!(pulls(&host).len(), 1);
    // A secret that is not there is told.
    let mut one = with_secret("f", "private", "IfNotPresent", "p");
    one.objects.secrets.clear();
    apply(one).await;
    until(&manager, "u-f", waits("ErrImagePull")).await;
    let told = reasons(&manager, "u-f");
    assert!(
        told.iter().any(|r| r == "FailedToRetrieveImagePullSecret"),
        "{told:?}"
    );
}
