//! Which models a command runs on: those named, those found, else the miniature stack that the program carries.

use std::path::{Path, PathBuf};

use engine::ModelPaths;
use faces::Identity;
use hub::{HubConfig, Role};
use sha2::{Digest, Sha256};

use crate::cli::ModelFileArgs;
use crate::fault::Fault;
use crate::{models, output};

/// The name of the built-in models.
pub(crate) const MINI: &str = "mini";

/// Their face encoder.
const ENCODER: &str = "faces/arcface.onnx";

/// What the options say about models.
pub(crate) struct Given<'a> {
    pub(crate) model: Option<&'a str>,
    pub(crate) model_config: Option<&'a Path>,
    pub(crate) identitynet: Option<&'a str>,
    pub(crate) ip_adapter: Option<&'a str>,
    pub(crate) face_models: Option<&'a str>,
}

impl<'a> From<&'a ModelFileArgs> for Given<'a> {
    fn from(args: &'a ModelFileArgs) -> Given<'a> {
        Given {
            model: args.model.as_deref(),
            model_config: args.model_config.as_deref(),
            identitynet: args.identitynet.as_deref(),
            ip_adapter: args.ip_adapter.as_deref(),
            face_models: args.face_models.as_deref(),
        }
    }
}

impl Given<'_> {
    fn of(&self, role: Role) -> Option<&str> {
        match role {
            Role::Base => self.model,
            Role::IdentityNet => self.identitynet,
            Role::IpAdapter => self.ip_adapter,
            Role::FaceModels => self.face_models,
        }
    }

    /// A part about which nothing is said, in the folder that is named as the base model: a whole stack can lie in one.
    fn beside(&self, config: &HubConfig, role: Role) -> Option<PathBuf> {
        let base = self.model.filter(|base| role != Role::Base && Path::new(base).is_dir())?;
        hub::locate(config, role, Some(base)).ok().map(|found| found.path)
    }

    /// Whether what nothing is said about comes from the built-in models: where they are the base model, and where
    /// nothing is said and nothing is installed that could make a picture. Face models alone cannot.
    fn falls_back_to_mini(&self, config: &HubConfig) -> bool {
        let said = Role::ALL.iter().any(|role| self.of(*role).is_some());
        let installed = [Role::Base, Role::IdentityNet, Role::IpAdapter]
            .into_iter()
            .any(|role| !matches!(hub::locate(config, role, None), Err(hub::Error::NotInstalled { .. })));
        is_mini(self.model) || (mini::is_built_in() && !said && !installed)
    }
}

/// Whether a command that says nothing about models runs on the built-in ones.
pub(crate) fn falls_back(config: &HubConfig) -> bool {
    let nothing = Given { model: None, model_config: None, identitynet: None, ip_adapter: None, face_models: None };
    nothing.falls_back_to_mini(config)
}

/// Finds what the parts of a stack are that a command needs, and no more.
pub(crate) fn find(config: &HubConfig, given: &Given, needs: impl Fn(Role) -> bool) -> Result<ModelPaths, Fault> {
    let fallback = given.falls_back_to_mini(config);
    if let Some(home) = config.models.as_ref().filter(|_| fallback && !is_mini(given.model)) {
        output::say(&format!("note: no models were found in {}, so the built-in ones are used", home.display()));
    }
    let find = |role: Role| -> Result<Option<PathBuf>, Fault> {
        match given.of(role) {
            _ if !needs(role) => Ok(None),
            named if is_mini(named) || (named.is_none() && fallback) => built_in(role).map(Some),
            None => match given.beside(config, role) {
                Some(path) => Ok(Some(path)),
                None => Ok(Some(hub::locate(config, role, None)?.path)),
            },
            named => Ok(Some(hub::locate(config, role, named)?.path)),
        }
    };
    // What was given comes before what is missing: a name that cannot be used is told even where no model is.
    Role::ALL.into_iter().filter(|role| given.of(*role).is_some()).try_for_each(|role| find(role).map(drop))?;
    Ok(ModelPaths {
        base: find(Role::Base)?.unwrap_or_default(),
        config: given.model_config.map(Path::to_path_buf),
        ip_adapter: find(Role::IpAdapter)?,
        identitynet: find(Role::IdentityNet)?,
        face_models: find(Role::FaceModels)?,
    })
}

/// The face models for a command that needs nothing else, and whether they are the built-in ones.
pub(crate) fn face_models(config: &HubConfig, given: Option<&str>) -> Result<(PathBuf, bool), Fault> {
    if is_mini(given) {
        return Ok((built_in(Role::FaceModels)?, true));
    }
    match hub::locate(config, Role::FaceModels, given) {
        Err(hub::Error::NotInstalled { .. }) if mini::is_built_in() => Ok((built_in(Role::FaceModels)?, true)),
        found => Ok((found?.path, false)),
    }
}

/// The judge of the built-in models; `None` where the program carries none.
pub(crate) fn judge() -> Result<Option<PathBuf>, Fault> {
    Ok(mini::unpack(&models::cache())?.map(|folder| folder.join("judge")).filter(|judge| judge.is_dir()))
}

/// Whether a model's folder is the built-in one.
pub(crate) fn is_built_in(base: &Path) -> bool {
    mini::is_built_in()
        && base.parent() == Some(&models::cache())
        && base.file_name().is_some_and(|name| name.to_string_lossy().starts_with("mini-"))
}

/// Bytes as digests are written.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What there is to say of a saved identity that the built-in face encoder and another one do not share: embeddings of
/// one mean nothing to the other. `built_in` tells which models are to use it.
pub(crate) fn foreign(identity: &Path, built_in: bool) -> Option<String> {
    let encoder = Identity::open(identity).ok()?.encoder?;
    let own = mini::file(ENCODER).map(|bytes| hex(&Sha256::digest(bytes)));
    let name = identity.display();
    match (own.as_ref() == Some(&encoder), built_in) {
        (true, false) => Some(format!(
            "{name} was saved with the built-in face models, which know drawn characters only; save it again with `--face-models antelopev2`"
        )),
        (false, true) => Some(format!(
            "{name} was saved with other face models than the built-in ones, so the pictures will show somebody else"
        )),
        _ => None,
    }
}

/// A file or folder of that name comes first, as for all names.
fn is_mini(named: Option<&str>) -> bool {
    named.is_some_and(|name| name.eq_ignore_ascii_case(MINI) && !Path::new(name).exists())
}

/// A part of the built-in models, unpacked.
fn built_in(role: Role) -> Result<PathBuf, Fault> {
    let Some(folder) = mini::unpack(&models::cache())? else {
        return Err(Fault::Given(format!(
            "{} {MINI}: this program was built without the built-in models; `sameface models pull instantid` brings others",
            role.flag()
        )));
    };
    Ok(match role {
        Role::Base => folder,
        Role::IdentityNet => folder.join("ControlNetModel"),
        Role::IpAdapter => folder.join("ip-adapter.bin"),
        Role::FaceModels => folder.join("faces"),
    })
}
