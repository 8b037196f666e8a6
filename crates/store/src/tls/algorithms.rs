//! The one set of cryptography: ring's, and what Go's TLS knows besides and people's certificates use:
//! ECDSA on P-521, private RSA keys that are larger or smaller than ring takes, and smaller public ones (ADR 6).

use std::sync::{Arc, LazyLock};

use p521::ecdsa::signature::hazmat::PrehashVerifier;
use p521::pkcs8::{DecodePrivateKey, EncodePublicKey};
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use rsa::sha2::{Digest, Sha256, Sha384, Sha512};
use rsa::signature::{SignatureEncoding, Signer as _};
use rsa::traits::PublicKeyParts;
use rsa::{Pkcs1v15Sign, Pss};
use tokio_rustls::rustls::crypto::{CryptoProvider, KeyProvider, WebPkiSupportedAlgorithms, ring};
use tokio_rustls::rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, PrivateKeyDer, SignatureVerificationAlgorithm,
    SubjectPublicKeyInfoDer, alg_id,
};
use tokio_rustls::rustls::sign::{Signer, SigningKey};
use tokio_rustls::rustls::{Error, OtherError, SignatureAlgorithm, SignatureScheme};

/// Returns the cryptography that every connection uses.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let ring = ring::default_provider();
        let algorithms = with_p521(&ring.signature_verification_algorithms);
        Arc::new(CryptoProvider {
            signature_verification_algorithms: algorithms,
            key_provider: &Keys,
            ..ring
        })
    });
    PROVIDER.clone()
}

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

/// rustls wants lists that live as long as the program: they are made once.
fn with_p521(ring: &WebPkiSupportedAlgorithms) -> WebPkiSupportedAlgorithms {
    const P521: &[Algorithm] = &[
        &P521Verification(Hash::Sha512),
        &P521Verification(Hash::Sha384),
        &P521Verification(Hash::Sha256),
    ];
    let widened = |algorithm: &Algorithm| match RsaVerification::of(*algorithm) {
        Some(rsa) => &*Box::leak(Box::new(rsa)),
        None => *algorithm,
    };
    let all = ring.all.iter().map(widened).chain(P521.iter().copied());
    let all: Vec<Algorithm> = all.collect();
    let mut mapping = Vec::new();
    for (scheme, algorithms) in ring.mapping {
        // In TLS 1.2 a scheme says the hash and leaves the curve open.
        let also = match scheme {
            SignatureScheme::ECDSA_NISTP384_SHA384 => Some(P521[1]),
            SignatureScheme::ECDSA_NISTP256_SHA256 => Some(P521[2]),
            _ => None,
        };
        let algorithms: Vec<Algorithm> = algorithms.iter().map(widened).chain(also).collect();
        mapping.push((*scheme, &*algorithms.leak()));
    }
    mapping.push((SignatureScheme::ECDSA_NISTP521_SHA512, &P521[..1]));
    WebPkiSupportedAlgorithms {
        all: all.leak(),
        mapping: mapping.leak(),
    }
}

#[derive(Clone, Copy, Debug)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn of(self, message: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(message).to_vec(),
            Hash::Sha384 => Sha384::digest(message).to_vec(),
            Hash::Sha512 => Sha512::digest(message).to_vec(),
        }
    }
}

/// Bytes of a number of the curve.
const P521_BYTES: usize = 66;

#[derive(Debug)]
struct P521Verification(Hash);

impl SignatureVerificationAlgorithm for P521Verification {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(public_key);
        let signature = p521::ecdsa::DerSignature::try_from(signature);
        let (Ok(key), Ok(signature)) = (key, signature) else {
            return Err(InvalidSignature);
        };
        // The number that the hash is, at full length: the crate refuses SHA-256 as too short, Go does not.
        let hash = self.0.of(message);
        let mut number = [0; P521_BYTES];
        number[P521_BYTES - hash.len()..].copy_from_slice(&hash);
        key.verify_prehash(&number, &signature)
            .map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        match self.0 {
            Hash::Sha256 => alg_id::ECDSA_SHA256,
            Hash::Sha384 => alg_id::ECDSA_SHA384,
            Hash::Sha512 => alg_id::ECDSA_SHA512,
        }
    }
}

/// Reads private keys: ring's, then those that ring does not know.
#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, der: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let ring = ring::default_provider().key_provider;
        let refusal = match ring.load_private_key(der.clone_key()) {
            Ok(key) => return Ok(key),
            Err(refusal) => refusal,
        };
        if let Some(key) = P521Key::read(&der) {
            return Ok(Arc::new(key));
        }
        match RsaKey::read(&der) {
            Some(key) => Ok(Arc::new(key)),
            None => Err(refusal),
        }
    }
}

#[derive(Clone)]
struct P521Key {
    key: p521::ecdsa::SigningKey,
    public: Vec<u8>,
}

impl P521Key {
    fn read(der: &PrivateKeyDer<'_>) -> Option<P521Key> {
        let key = match der {
            PrivateKeyDer::Sec1(der) => {
                p521::SecretKey::from_sec1_der(der.secret_sec1_der()).ok()?
            }
            PrivateKeyDer::Pkcs8(der) => {
                p521::SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).ok()?
            }
            _ => return None,
        };
        let public = key.public_key().to_public_key_der().ok()?.into_vec();
        Some(P521Key {
            key: key.into(),
            public,
        })
    }
}

impl std::fmt::Debug for P521Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("P521Key(..)")
    }
}

impl SigningKey for P521Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let offered = offered.contains(&SignatureScheme::ECDSA_NISTP521_SHA512);
        offered.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.as_slice().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for P521Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature: p521::ecdsa::DerSignature = self.key.try_sign(message).map_err(failed)?;
        Ok(signature.as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// One of ring's verifications of RSA, also for the keys that Go takes and ring finds too short.
#[derive(Debug)]
struct RsaVerification {
    ring: Algorithm,
    is_pss: bool,
    hash: Hash,
}

impl RsaVerification {
    /// Returns what takes the place of ring's algorithm; `None` if it is not RSA.
    fn of(ring: Algorithm) -> Option<RsaVerification> {
        let id = ring.signature_alg_id();
        let kinds = [
            (alg_id::RSA_PKCS1_SHA256, false, Hash::Sha256),
            (alg_id::RSA_PKCS1_SHA384, false, Hash::Sha384),
            (alg_id::RSA_PKCS1_SHA512, false, Hash::Sha512),
            (alg_id::RSA_PSS_SHA256, true, Hash::Sha256),
            (alg_id::RSA_PSS_SHA384, true, Hash::Sha384),
            (alg_id::RSA_PSS_SHA512, true, Hash::Sha512),
        ];
        let (_, is_pss, hash) = kinds.into_iter().find(|(of, _, _)| *of == id)?;
        Some(RsaVerification { ring, is_pss, hash })
    }

    fn verify_short(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
        let key = rsa::PublicKey::from_pkcs1_der(key).ok()?;
        if !SHORT_RSA_BYTES.contains(&key.size()) {
            return None;
        }
        let hash = self.hash.of(message);
        let verified = match (self.is_pss, self.hash) {
            (false, Hash::Sha256) => key.verify(Pkcs1v15Sign::new::<Sha256>(), &hash, signature),
            (false, Hash::Sha384) => key.verify(Pkcs1v15Sign::new::<Sha384>(), &hash, signature),
            (false, Hash::Sha512) => key.verify(Pkcs1v15Sign::new::<Sha512>(), &hash, signature),
            (true, Hash::Sha256) => key.verify(Pss::<Sha256>::new(), &hash, signature),
            (true, Hash::Sha384) => key.verify(Pss::<Sha384>::new(), &hash, signature),
            (true, Hash::Sha512) => key.verify(Pss::<Sha512>::new(), &hash, signature),
        };
        verified.ok()
    }
}

impl SignatureVerificationAlgorithm for RsaVerification {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let verified = self.ring.verify_signature(public_key, message, signature);
        let short = || self.verify_short(public_key, message, signature);
        verified.or_else(|invalid| short().ok_or(invalid))
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.ring.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.ring.signature_alg_id()
    }
}

/// Sizes of RSA keys that Go takes and ring does not: 1024 to 2047 bits.
const SHORT_RSA_BYTES: std::ops::Range<usize> = 128..256;

/// Sizes of RSA keys that Go takes.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 128..=1024;

/// An RSA key that ring does not take: of 1024 to 2047 or 4097 to 8192 bits.
#[derive(Clone)]
struct RsaKey {
    key: rsa::PrivateKey,
    public: Vec<u8>,
}

impl RsaKey {
    fn read(der: &PrivateKeyDer<'_>) -> Option<RsaKey> {
        let key = match der {
            PrivateKeyDer::Pkcs1(der) => {
                rsa::PrivateKey::from_pkcs1_der(der.secret_pkcs1_der()).ok()?
            }
            PrivateKeyDer::Pkcs8(der) => {
                rsa::PrivateKey::from_pkcs8_der(der.secret_pkcs8_der()).ok()?
            }
            _ => return None,
        };
        if !RSA_BYTES.contains(&key.size()) {
            return None;
        }
        let public = key.to_public_key().to_public_key_der().ok()?.into_vec();
        Some(RsaKey { key, public })
    }
}

impl std::fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RsaKey(..)")
    }
}

/// In order of preference; TLS 1.3 knows the first three only.
const RSA_SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

impl SigningKey for RsaKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = RSA_SCHEMES.into_iter().find(|s| offered.contains(s))?;
        Some(Box::new(RsaSigner {
            key: self.key.clone(),
            scheme,
        }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.as_slice().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

struct RsaSigner {
    key: rsa::PrivateKey,
    scheme: SignatureScheme,
}

impl std::fmt::Debug for RsaSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RsaSigner({:?})", self.scheme)
    }
}

impl Signer for RsaSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        use rsa::{pkcs1v15, pss};
        let key = self.key.clone();
        // All of them draw random numbers: for the salt, and against timing attacks.
        let signature = match self.scheme {
            SignatureScheme::RSA_PSS_SHA256 => sign(&pss::SigningKey::<Sha256>::new(key), message),
            SignatureScheme::RSA_PSS_SHA384 => sign(&pss::SigningKey::<Sha384>::new(key), message),
            SignatureScheme::RSA_PSS_SHA512 => sign(&pss::SigningKey::<Sha512>::new(key), message),
            SignatureScheme::RSA_PKCS1_SHA384 => {
                sign(&pkcs1v15::SigningKey::<Sha384>::new(key), message)
            }
            SignatureScheme::RSA_PKCS1_SHA512 => {
                sign(&pkcs1v15::SigningKey::<Sha512>::new(key), message)
            }
            _ => sign(&pkcs1v15::SigningKey::<Sha256>::new(key), message),
        };
        signature.map_err(failed)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

fn sign<S: SignatureEncoding>(
    key: &impl rsa::signature::Signer<S>,
    message: &[u8],
) -> rsa::signature::Result<Vec<u8>> {
    Ok(key.try_sign(message)?.to_vec())
}

fn failed(error: rsa::signature::Error) -> Error {
    Error::Other(OtherError(Arc::new(error)))
}
