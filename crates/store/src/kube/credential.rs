//! How a kubeconfig's user authenticates: a token, a program, and as whom.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use yaml_rust2::Yaml;

use super::exec::Exec;
use super::yaml::{At, boolean, list, relative_to, scalar, string};
use crate::secret::Secret;

/// What a request authenticates with, apart from a certificate.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    Token(Secret),
    /// Read again for each request: it is renewed every hour or so. Until it can be read, the token beside it
    /// is used, if there is one.
    TokenFile(PathBuf, Option<Secret>),
    /// A program that prints a token or a certificate.
    Exec(Arc<Exec>),
}

/// Reads a user's credential; `None`: a certificate at most.
pub(super) fn credential(user: At<'_>) -> Result<Option<Credential>, String> {
    // A block of YAML ends with a line feed, which no header may hold.
    let token = string(user.map, "token")?.map(|token| Secret::new(token.trim()));
    if let Some(file) = string(user.map, "tokenFile")? {
        let file = relative_to(user.path, &file);
        return Ok(Some(Credential::TokenFile(file, token)));
    }
    if let Some(token) = token {
        return Ok(Some(Credential::Token(token)));
    }
    let exec = &user.map["exec"];
    if matches!(exec, Yaml::BadValue | Yaml::Null) {
        return Ok(None);
    }
    Ok(Some(Credential::Exec(Arc::new(read_exec(
        exec, user.path,
    )?))))
}

fn read_exec(map: &Yaml, path: &Path) -> Result<Exec, String> {
    let in_exec = |problem: String| format!("exec: {problem}");
    let command = string(map, "command").map_err(in_exec)?;
    let command = command.ok_or("exec has no command")?;
    let version = string(map, "apiVersion").map_err(in_exec)?;
    let version = version.unwrap_or_default();
    if !matches!(
        version.as_str(),
        "client.authentication.k8s.io/v1" | "client.authentication.k8s.io/v1beta1"
    ) {
        return Err(format!(
            "exec: apiVersion is {version:?}: expected client.authentication.k8s.io/v1 or client.authentication.k8s.io/v1beta1; renew the kubeconfig with the tool that wrote it"
        ));
    }
    if string(map, "interactiveMode").map_err(in_exec)?.as_deref() == Some("Always") {
        return Err(format!(
            "exec: interactiveMode is Always, and nobody can answer what {command} asks: use a plugin that runs without a terminal"
        ));
    }
    // With a slash it is a path, from the kubeconfig's directory unless it is absolute; else it is searched in PATH.
    let command = if command.contains('/') {
        relative_to(path, &command)
    } else {
        command.into()
    };
    let mut args = Vec::new();
    for arg in list(map, "args").map_err(in_exec)? {
        args.push(scalar(arg).ok_or("exec: args holds something that is not text")?);
    }
    let mut env = Vec::new();
    for entry in list(map, "env").map_err(in_exec)? {
        let name = string(entry, "name").map_err(in_exec)?;
        let name = name.ok_or("exec: env has an entry without a name")?;
        if name.contains(['=', '\0']) {
            return Err(format!("exec: env: {name:?} is not a name of a variable"));
        }
        let value = string(entry, "value").map_err(in_exec)?.unwrap_or_default();
        env.push((name, Secret::new(value)));
    }
    Ok(Exec {
        command,
        args,
        env,
        version,
        cluster_info: boolean(map, "provideClusterInfo").map_err(in_exec)?,
        hint: string(map, "installHint").map_err(in_exec)?,
    })
}

/// Returns the headers that ask to be treated as another user.
pub(super) fn impersonate(user: &Yaml) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (key, header) in [("as", "impersonate-user"), ("as-uid", "impersonate-uid")] {
        headers.extend(string(user, key)?.map(|value| (header.to_owned(), value)));
    }
    for group in list(user, "as-groups")? {
        let group = scalar(group).ok_or("as-groups holds something that is not text")?;
        headers.push(("impersonate-group".into(), group));
    }
    if let Some(extra) = user["as-user-extra"].as_hash() {
        for (key, values) in extra {
            let key = scalar(key).ok_or("as-user-extra has a key that is not text")?;
            for value in values.as_vec().map(Vec::as_slice).unwrap_or_default() {
                let value =
                    scalar(value).ok_or("as-user-extra holds something that is not text")?;
                headers.push((format!("impersonate-extra-{key}"), value));
            }
        }
    }
    if !headers.is_empty() && !headers.iter().any(|(name, _)| name == "impersonate-user") {
        return Err("as-uid, as-groups and as-user-extra need as: the user to act as".into());
    }
    Ok(headers)
}
